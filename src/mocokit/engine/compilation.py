"""When torch.compile pays."""

import importlib.util
import os
import shutil

import torch

PAYS_FROM_STEPS = 5_000
"""ResNet-50 at 224 px, batch 256 on an H100: compiling took 106 s, a step 70 ms instead of 182 (benchmarks/gpu.py)."""


def should_compile(asked: str, device: torch.device, *, total_steps: int) -> bool:
    """Whether a run compiles its networks.

    Args:
        asked: "on", "off", or "auto": on a GPU that torch can generate code for, from PAYS_FROM_STEPS on.
        device: Where the run computes. On a CPU the libraries' own kernels are as fast.
        total_steps: Of the whole run, so that a resumed one decides as it did before.

    """
    if asked != "auto":
        return asked == "on"
    return device.type == "cuda" and total_steps >= PAYS_FROM_STEPS and _has_code_generator()


def _has_code_generator() -> bool:
    """Triton, and the C compiler that it needs for launching kernels."""
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(name and shutil.which(name) for name in compilers)
