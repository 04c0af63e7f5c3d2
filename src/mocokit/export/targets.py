"""The targets of `mocokit export`: one module each, imported when it is asked for."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mocokit.engine.backbone_file import LoadedBackbone

Reader = Callable[[Tensor], Tensor]
"""What another library computes from the exported file: (n, 3, S, S) normalised float32 images -> (n, D)."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a target wrote, and how it is read again without mocokit."""

    files: tuple[Path, ...]
    readers: Mapping[str, Reader]
    """Library and version -> its own reading of the files."""
    usage: str
    """A few lines that load it in that library."""
    notes: tuple[str, ...] = ()
    """What whoever uses the files must know."""


TARGETS = {
    "torchvision": "mocokit.export.to_torchvision:export_torchvision",
    "timm": "mocokit.export.to_timm:export_timm",
    "detectron2": "mocokit.export.to_detectron2:export_detectron2",
    "huggingface": "mocokit.export.to_huggingface:export_huggingface",
    "onnx": "mocokit.export.to_onnx:export_onnx",
    "safetensors": "mocokit.export.to_safetensors:export_safetensors",
    "official": "mocokit.export.to_official:export_official",
}
"""Name -> function (loaded backbone, path to make) -> Exported."""


def load_target(name: str) -> Callable[[LoadedBackbone, Path], Exported]:
    """The function behind a target's name.

    Raises:
        ValueError: No such target, or its libraries are not installed; the message names the extra.

    """
    if name not in TARGETS:
        raise ValueError(f"to={name}: unknown target; choose one of {', '.join(TARGETS)}")
    module, function = TARGETS[name].split(":")
    try:
        export: Callable[[LoadedBackbone, Path], Exported] = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise ValueError(f"to={name}: needs {error.name}; pip install 'mocokit[export]'") from error
    return export


def require_suffix(out: Path, *suffixes: str) -> str:
    """The suffix of `out`, which must be one of `suffixes`."""
    if out.suffix not in suffixes:
        raise ValueError(f"out={out}: must end in {' or '.join(suffixes)}")
    return out.suffix
