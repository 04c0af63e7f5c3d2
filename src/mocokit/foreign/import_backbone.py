"""Import a backbone: another project's checkpoint -> a backbone file that every mocokit command takes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mocokit.engine.backbone_file import BackboneCard, save_weights
from mocokit.foreign.evidence import Fact, Hints
from mocokit.foreign.find_backbone import find_backbone
from mocokit.settings import require


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """Content of an imported checkpoint."""

    layout: str
    """Name of the project."""
    card: BackboneCard
    path: str
    """Place of the backbone's weights in the checkpoint."""
    facts: tuple[Fact, ...]
    """Answers to what weights do not tell, each with its source."""
    wrappers: tuple[str, ...]
    """Parts that were taken out of names, such as "module" and "_orig_mod"."""
    left_out: dict[str, int]
    """Part that is not the backbone, such as "head" -> number of its tensors."""
    others: tuple[str, ...]
    """Places of other networks in the file that were not taken."""


def import_backbone(
    checkpoint: str | Path,
    out: str | Path,
    *,
    arch: str | None = None,
    prefix: str | None = None,
    ignore: Sequence[str] = (),
    padding: int | None = None,
    heads: int | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImportResult:
    """Write the backbone of another project's checkpoint as a backbone file.

    Args:
        checkpoint: File of torch or safetensors; no code in it is run.
        out: Backbone file to make (.safetensors).
        arch: Backbone; None: inferred from names and shapes.
        prefix: Start of the backbone's names; None: found.
        ignore: Patterns of names that are left out.
        padding: Padding of a 3x3 first convolution, 1 or 2; None: from the checkpoint's settings.
        heads: Heads of a ViT; None: from the checkpoint's settings or its fixed positions.
        image_size: Side of its training images (pixels); None: from positions or settings, else 224, or 32 for the
            small stem.
        mean: Mean of each channel, in 0..1, that its images were normalised with; None: from the checkpoint, else
            ImageNet's.
        std: Standard deviation of each channel, in 0..1; None: likewise.

    Raises:
        ValueError: The file can't be read, would run code, fits no backbone, or does not tell padding or heads.

    """
    hints = Hints(
        arch=arch,
        prefix=prefix,
        ignore=ignore,
        padding=padding,
        heads=heads,
        image_size=image_size,
        mean=mean,
        std=std,
    )
    return _import(Path(checkpoint).expanduser(), Path(out).expanduser(), hints)


def _import(source: Path, out: Path, hints: Hints) -> ImportResult:
    """Write the backbone of `source` to `out`."""
    require(out.suffix == ".safetensors", "out", out, "a backbone file must end in .safetensors")
    require(not out.exists(), "out", out, "exists; choose another name")
    try:
        found = find_backbone(source, hints)
    except ValueError as error:
        named = str(error).startswith("checkpoint=")
        raise ValueError(str(error) if named else f"checkpoint={source}: {error}") from error
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    card = BackboneCard(
        arch=found.arch,
        stem=found.stem,
        image_size=found.image_size,
        eval_crop_ratio=found.eval_crop_ratio,
        mean=found.mean,
        std=found.std,
        step=0,
        origin=f"{source.name} ({found.project}, {found.path or 'no prefix'}), sha256 {digest}",
    )
    save_weights(out, found.weights, card)
    return ImportResult(
        layout=found.project,
        card=card,
        path=found.path,
        facts=found.facts,
        wrappers=found.wrappers,
        left_out=found.left_out,
        others=found.others,
    )
