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
