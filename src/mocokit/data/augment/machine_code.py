"""Compile pixel loops with numba."""

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

LOGGER = logging.getLogger("mocokit")

F = TypeVar("F", bound=Callable[..., Any])

_NO_FOLDER = (
    "numba: neither the package's folder nor the home can be written, so pixel loops are compiled anew for this run "
    "(about 20 s); set NUMBA_CACHE_DIR to a folder of your own to keep them"
)


def compiled(function: F) -> F:
    """Return `function` compiled to machine code without the interpreter lock.

    Compilation happens at the first call and takes seconds; later processes load the result from disk. Fast-math is
    off: results must equal those of Pillow's C code, including rounding.
    """
    try:
        return _compile(function, keep=True)
    except RuntimeError:  # numba finds no folder to write to: a read-only container, or no home
        LOGGER.warning(_NO_FOLDER)
    try:
        _keep_in_temporary_folder()
        return _compile(function, keep=True)
    except (RuntimeError, OSError):
        return _compile(function, keep=False)


def _compile(function: F, *, keep: bool) -> F:
    return cast(F, numba.njit(cache=keep, nogil=True, error_model="numpy")(function))


def _keep_in_temporary_folder() -> None:
    """Make numba keep compiled code in a folder of this process's own until it ends; workers find it there.

    A folder with a fixed name would be another user's to fill, with code that we would run.
    """
    folder = tempfile.mkdtemp(prefix="mocokit-numba-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not a forked worker
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    os.environ["NUMBA_CACHE_DIR"] = folder  # for processes that are spawned
    numba.config.CACHE_DIR = folder  # type: ignore[attr-defined]
