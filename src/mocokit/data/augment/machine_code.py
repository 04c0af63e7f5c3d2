"""Pixel loops as machine code."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """`function` in machine code: made at its first call (seconds), kept on disk for later processes.

    No fast-math: results must be those of Pillow's C code, rounding included.
    """
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def inlined(function: F) -> F:
    """`function` as a part of the compiled one that calls it, for loops in which a call is too dear."""
    return cast(F, numba.njit(inline="always", nogil=True, error_model="numpy")(function))
