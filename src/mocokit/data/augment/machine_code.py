"""Compile pixel loops with numba."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Return `function` compiled to machine code without the interpreter lock.

    Compilation happens at the first call and takes seconds; later processes load the result from disk. Fast-math is
    off: results must equal those of Pillow's C code, including rounding.
    """
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
