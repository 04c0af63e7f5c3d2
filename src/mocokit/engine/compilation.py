"""Decide if a run uses torch.compile."""

import importlib.util
import os
import shutil

import torch

PAYS_FROM_STEPS = 5_000
"""Shortest run that "auto" compiles. ResNet-50 at 224 px, batch 256 on an H100: compiling took 106 s and a step 70 ms
instead of 182 (benchmarks/gpu.py), so that it paid from about 950 steps on."""


def should_compile(asked: str, device: torch.device, *, total_steps: int) -> bool:
    """Return True if the run compiles its networks.

    Args:
        asked: "on", "off", or "auto": compile on a GPU for which torch can generate code, from PAYS_FROM_STEPS steps.
        device: Device of the run. On a CPU the libraries' own kernels are as fast as generated code.
        total_steps: Steps of the whole run, not of what is left, so that a resumed run decides as it did before.

    """
    if asked != "auto":
        return asked == "on"
    return device.type == "cuda" and total_steps >= PAYS_FROM_STEPS and has_code_generator()


def has_code_generator() -> bool:
    """Return True if there is Triton, and the C compiler that it needs to launch kernels."""
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(name and shutil.which(name) for name in compilers)
