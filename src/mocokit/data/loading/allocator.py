"""What the C library does with memory that a step has freed and the next one asks for again."""

import ctypes
import os

import torch

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory(device: torch.device) -> None:
    """Let glibc keep what a step has freed for the next one, where `device` is the CPU.

    By itself it hands large tensors back to the kernel, which fills every page with zeros before it gives it out again:
    5 % and more of a ResNet-50's step at 224 px (docs/performance.md), for a tenth less memory. Nothing is changed with
    another C library, or where the environment says how memory is to be handled (MALLOC_..., GLIBC_TUNABLES). Source:
    mallopt(3).
    """
    if device.type != "cpu" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)


def give_back_freed_memory() -> None:
    """Let glibc hand over to the kernel what it keeps, before worker processes are forked.

    As long as they live, they share all pages: each is copied before the step writes to it again, which makes steps
    slow and takes the memory twice. Source: malloc_trim(3).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
