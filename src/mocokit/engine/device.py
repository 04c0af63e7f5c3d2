"""The device that a command computes on: by name, or the fastest that torch sees."""

import os
import re

import torch

_NAMES = re.compile(r"auto|cpu|mps|cuda(:\d{1,4})?")

SUM_TYPES = {"mps": torch.float32}
"""Device type -> number format of sums over many images, where the device lacks float64."""


def pick_device(name: str, *, local_rank: int) -> torch.device:
    """Return the device to compute on; "auto" is this rank's GPU if torch sees one, then MPS, then the CPU.

    Makes a GPU the current device of this process, and lets cuDNN choose the fastest convolutions by trying them.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.
        local_rank: Number of this rank on its machine, and so of its GPU, unless the name has a number.

    Raises:
        ValueError: Not one of these names, or torch does not see that device here.

    """
    if not _NAMES.fullmatch(name):
        raise ValueError(f"run.device={name!r}: not a device; use auto, cpu, cuda or cuda:N, or mps")
    if name == "auto":
        name = _choose()
    if name == "mps":
        _require_mps()
        return torch.device("mps")
    if name == "cpu":
        return torch.device("cpu")
    return _use_gpu(name, local_rank)


def _choose() -> str:
    if torch.cuda.is_available():
        return "cuda"
    # gloo, which ranks exchange CPU tensors by, can't send MPS's.
    return "mps" if torch.backends.mps.is_available() and not _has_ranks() else "cpu"


def _has_ranks() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _require_mps() -> None:
    if not torch.backends.mps.is_available():
        raise ValueError("run.device='mps': torch sees no MPS device here (Apple's GPUs on macOS); use cpu or auto")
    if _has_ranks():
        raise ValueError("run.device='mps': ranks can't exchange tensors of MPS; start one process, or use cpu")


def _use_gpu(name: str, local_rank: int) -> torch.device:
    """Make a GPU the current device of this process, and return it."""
    if not torch.cuda.is_available():
        raise ValueError(f"run.device={name!r}: torch sees no GPU here; use cpu, or install a CUDA build of torch")
    number = int(name.removeprefix("cuda:")) if ":" in name else local_rank
    count = torch.cuda.device_count()
    if number >= count:
        why = f"the highest number here is cuda:{count - 1}"
        if name == "cuda":
            why = f"rank {local_rank} of this machine has no GPU, torch sees {count}; start {count} ranks at most"
        raise ValueError(f"run.device={name!r}: {why}")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True
    return device


def sum_type(device: torch.device) -> torch.dtype:
    """Return the number format for sums over many images on a device: float64 where it exists."""
    return SUM_TYPES.get(device.type, torch.float64)
