"""Tell glibc to keep the memory that a training step frees, or to return it to the kernel."""

import ctypes
import os
import sys

import torch

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory(device: torch.device) -> None:
    """Make glibc keep freed memory for the next step if `device` is the CPU.

    By default glibc returns the memory of large tensors to the kernel, which fills each page with zeros before it hands
    it out again. That costs 5 % or more of a ResNet-50's step at 224 px (docs/performance.md); keeping the memory takes
    a tenth more of it. Does nothing with another C library, or if the environment configures the allocator (MALLOC_...,
    GLIBC_TUNABLES). Source: mallopt(3).
    """
    if device.type != "cpu" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    glibc = _glibc()
    if glibc is not None:
        glibc.mallopt(M_MMAP_MAX, 0)
        glibc.mallopt(M_TRIM_THRESHOLD, -1)


def give_back_freed_memory() -> None:
    """Make glibc return the memory it keeps to the kernel; to be called before worker processes are forked.

    Forked workers share all pages of this process. A shared page is copied when the step writes to it again, which
    slows steps down and takes the memory twice. Source: malloc_trim(3).
    """
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc; else None, as on macOS, Windows and Alpine."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
