"""Targets of `mocokit export`: the contract of a target, and how one is found by name.

A target is a callable `(LoadedBackbone, Path) -> Exported`. It writes one file or one folder at the given path, and
returns readers that load what it wrote without mocokit. `export_run` then compares each reader's features with
mocokit's on real images, deletes the path if they differ, and else writes the card. See docs/weights.md for an example.

There are three ways to a target:
    - built in: a name in TARGETS; its module and its library are imported when it is asked for;
    - installed: another package names it in its pyproject.toml, `[project.entry-points."mocokit.exports"]`;
    - in Python: `export_run(run, to=my_target, out=...)`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from torch import Tensor

from mocokit.engine.backbone_file import LoadedBackbone
from mocokit.settings import choose, require

Reader = Callable[[Tensor], Tensor]
"""Compute features from the exported files: normalised float32 images (n, 3, S, S) -> (n, D)."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Files that a target wrote, and how to read them without mocokit."""

    files: tuple[Path, ...]
    """All files, at or below the path that the target was given; the card lists their SHA-256."""
    readers: Mapping[str, Reader]
    """Name and version of a library -> features computed by it from the files. At least one."""
    usage: str
    """Lines of code that load the files in that library; printed, and part of the card."""
    notes: tuple[str, ...] = ()
    """Limits that a user of the files must know; printed, and part of the card."""


Target = Callable[[LoadedBackbone, Path], Exported]
"""Write a backbone at a path that does not exist yet.

Raises ValueError, `to=name: ...`, if the target can't hold this backbone. What it changes in the backbone has no
effect: it gets a copy.
"""

GROUP = "mocokit.exports"
"""Entry-point group in which other packages name their targets."""

TARGETS = {
    name: EntryPoint(name=name, value=f"mocokit.export.to_{name}:export_{name}", group=GROUP)
    for name in ("torchvision", "timm", "detectron2", "huggingface", "onnx", "safetensors", "official")
}
"""Built-in targets by name."""


def load_target(name: str) -> Target:
    """Return the target of that name, built in or installed by another package; a built-in one comes first.

    Raises:
        ValueError: Unknown name, or a library that the target imports is not installed; the message names it.

    """
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    entry = choose("to", name, installed | TARGETS)
    try:
        target: Target = entry.load()
    except ModuleNotFoundError as error:
        remedy = "pip install 'mocokit[export]'" if name in TARGETS else f"install it ({entry.value} imports it)"
        raise ValueError(f"to={name}: needs {error.name}; {remedy}") from error
    return target


def require_suffix(out: Path, *suffixes: str) -> str:
    """Return the suffix of `out`; raise ValueError if it is none of `suffixes`."""
    require(out.suffix in suffixes, "out", out, f"must end in {' or '.join(suffixes)}")
    return out.suffix
