"""Read another project's checkpoint file without running code from it."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mocokit.engine.checkpoint import UNREADABLE, load_tensors
from mocokit.settings import require


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the file's dictionary, with tensors on the CPU.

    Raises:
        ValueError: The file is missing, cut, damaged, no dictionary, or a pickle that would run code.

    """
    require(path.is_file(), "checkpoint", path, "no such file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals(_data_classes()):
            content = load_tensors(path)
    except (*UNREADABLE, SafetensorError) as error:
        raise ValueError(f"checkpoint={path}: {_explain(path, str(error))}") from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint={path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def _explain(path: Path, error: str) -> str:
    """Return why torch did not load the file and what to do, in one line."""
    code = re.search(r"(?:GLOBAL|global:?|class|function)\s+[`'\"]?([\w.]+\.[\w.]+)", error)
    if "weights_only" in error.lower() and code:
        return (
            f"refused: loading it would run {code[1]}, and mocokit runs no code from a file; in the program that wrote "
            "it, save the state dict alone: torch.save({'state_dict': model.state_dict()}, 'plain.pth')"
        )
    if "Unsupported operand" in error and path.read_bytes().startswith(b"\x80"):  # a pickle's first byte
        return "refused: torch.save did not write this pickle, and it could run code; save it with torch.save"
    first = error.splitlines()[0].split(". ")[0] if error else "it ends too early"
    return f"cut, damaged, or not a checkpoint ({first})"


def _data_classes() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """Return the classes, beyond tensors and plain values, that checkpoints may hold: each only stores data."""
    scalar: Callable[..., object] = cast(Any, np.float64(0).__reduce__()[0])
    reconstruct: Callable[..., object] = cast(Any, np.zeros(1).__reduce__()[0])
    kinds = ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")
    return [
        argparse.Namespace,  # DINO's `args`
        np.dtype,
        np.ndarray,
        *sorted({type(np.dtype(kind)) for kind in kinds}, key=str),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # numpy 1, numpy 2
        *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    ]
