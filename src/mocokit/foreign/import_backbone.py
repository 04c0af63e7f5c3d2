"""Import a backbone: another project's checkpoint -> a backbone file that every mocokit command takes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mocokit.data.augment.recipes import EVAL_CROP_RATIO
from mocokit.engine.backbone_file import BackboneCard, save_backbone
from mocokit.foreign.architecture import compare, infer_architecture, infer_stem, rename_backbone
from mocokit.foreign.layouts import Recognised, recognise
from mocokit.foreign.reading import read_checkpoint
from mocokit.nets.backbones import build_backbone
from mocokit.nets.pixels import IMAGENET_MEAN, IMAGENET_STD
from mocokit.settings import require

IMAGE_SIZES = {"imagenet": 224, "small": 32}
"""Stem -> image size (pixels), if the user gives none."""


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """Content of an imported checkpoint."""

    layout: str
    """Name of the project's layout."""
    card: BackboneCard
    left_out: dict[str, int]
    """Part that is not the backbone, such as "head" -> number of its tensors."""


def import_backbone(
    checkpoint: str | Path,
    out: str | Path,
    *,
    arch: str | None = None,
    image_size: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> ImportResult:
    """Write the backbone of a checkpoint of MoCo, lightly, solo-learn, VISSL, mmselfsup, DINO, torchvision or timm.

    Args:
        checkpoint: File of torch or safetensors; no code in it is run.
        out: Backbone file to make (.safetensors).
        arch: Backbone; None: inferred from names and shapes.
        image_size: Side of its training images (pixels); None: 224, or 32 for the small stem.
        mean: Mean of each channel, in 0..1, that its images were normalised with.
        std: Standard deviation of each channel, in 0..1.

    Raises:
        ValueError: The file can't be read, would run code, has unknown keys, or does not fit the backbone.

    """
    source = Path(checkpoint).expanduser()
    path = Path(out).expanduser()
    require(path.suffix == ".safetensors", "out", out, "a backbone file must end in .safetensors")
    require(not path.exists(), "out", out, "exists; choose another name")
    content = read_checkpoint(source)
    try:
        found = recognise(content)
        arch, stem = _architecture(found, arch)
    except ValueError as error:
        raise ValueError(f"checkpoint={source}: {error}") from error
    backbone = build_backbone(arch, stem=stem)
    state = backbone.state_dict() | rename_backbone(found.backbone)  # the file may lack BatchNorm counters
    backbone.load_state_dict(state)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    card = BackboneCard(
        arch=arch,
        stem=stem,
        image_size=image_size or IMAGE_SIZES[stem],
        eval_crop_ratio=EVAL_CROP_RATIO,
        mean=tuple(mean),
        std=tuple(std),
        step=0,
        origin=f"{source.name} ({found.layout.name}), sha256 {digest}",
    )
    save_backbone(path, backbone, card)
    return ImportResult(layout=found.layout.name, card=card, left_out=found.left_out)


def _architecture(found: Recognised, arch: str | None) -> tuple[str, str]:
    """Return (arch, stem), inferred unless `arch` is given; raise ValueError if the weights do not fit `arch`."""
    state = rename_backbone(found.backbone)
    if arch is None:
        inferred, stem = infer_architecture(state)
        return found.layout.renamed_archs.get(inferred, inferred), stem
    stem = infer_stem(state) if not arch.startswith(("timm/", "vit_")) else "imagenet"
    difference = compare(state, arch, stem)
    message = f"the weights of {found.layout.name} are not of this backbone; {difference}"
    require(len(difference) == 0, "arch", arch, message)
    return arch, stem
