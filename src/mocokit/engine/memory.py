"""What the C library does with memory that a step has freed and the next one asks for again."""

import ctypes
import os

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Let glibc keep what a step on the CPU has freed for the next one.

    By itself it hands large tensors back to the kernel, which fills every page with zeros before it gives it out again:
    4 % and more of a ResNet-50's step at 224 px (docs/performance.md), for a tenth less memory. Nothing is changed with
    another C library, or where the environment says how memory is to be handled (MALLOC_..., GLIBC_TUNABLES). Source:
    mallopt(3).
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)
