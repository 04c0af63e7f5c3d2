"""`backbone.safetensors`: a backbone's weights under torchvision's or timm's names, with what is needed to use them.

`torchvision.models.resnet50().load_state_dict(load_file(path), strict=False)` misses `fc.*` alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mocokit.engine.checkpoint import UNREADABLE, write_atomically
from mocokit.nets.backbones import build_backbone, build_seeded
from mocokit.nets.pixels import PixelNormalize

MAX_IMAGE_SIZE = 2**13
"""Side of an image (pixels) that a card may ask for."""


@dataclass(frozen=True, kw_only=True)
class BackboneCard:
    """How to build the backbone and how to feed it."""

    arch: str
    stem: str
    image_size: int
    eval_crop_ratio: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    step: int
    """Optimizer steps that the weights saw, as far as mocokit knows."""
    origin: str = ""
    """File and layout that the weights were imported from; empty: a run of mocokit."""


@dataclass(frozen=True, kw_only=True)
class LoadedBackbone:
    """A frozen backbone and its input."""

    backbone: nn.Module
    """(N, 3, H, W) normalised images -> (N, D), in eval mode."""
    pixels: PixelNormalize
    """(N, 3, H, W) uint8 images -> normalised ones."""
    card: BackboneCard
    path: Path
    """The file that it came from."""


def save_backbone(path: Path, backbone: nn.Module, card: BackboneCard) -> None:
    """Write the weights with the card as metadata; complete or not at all."""
    save_weights(path, backbone.state_dict(), card)


def save_weights(path: Path, weights: Mapping[str, Tensor], card: BackboneCard) -> None:
    """`save_backbone` of a backbone's state dict."""
    state = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    metadata = {"format": "pt", "mocokit": json.dumps(asdict(card))}
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata=metadata))


def load_backbone(run_or_file: str | Path) -> LoadedBackbone:
    """The pre-trained backbone of a run folder or of a `backbone.safetensors` file.

    Raises:
        ValueError: No such file, damaged, or not written by mocokit.

    """
    path = Path(run_or_file).expanduser()
    path = path / "backbone.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"run={run_or_file}: no backbone there ({path.name} is written at the first checkpoint)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, *UNREADABLE) as error:
        raise ValueError(f"run={path}: damaged file ({error})") from error
    if "mocokit" not in metadata:
        raise ValueError(f"run={path}: not written by mocokit; it does not say which backbone it holds")
    try:
        card = _read_card(metadata["mocokit"])
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"run={path}: damaged card ({error})") from error
    _require_fit(state, card, path)
    backbone = build_backbone(card.arch, stem=card.stem)
    backbone.load_state_dict(state)
    return LoadedBackbone(backbone=backbone.eval(), pixels=PixelNormalize(card.mean, card.std), card=card, path=path)


def _read_card(text: str) -> BackboneCard:
    values = json.loads(text)
    values["mean"] = tuple(map(float, values["mean"]))
    values["std"] = tuple(map(float, values["std"]))
    card = BackboneCard(**values)
    if not (isinstance(card.arch, str) and isinstance(card.stem, str) and len(card.mean) == len(card.std) == 3):
        raise ValueError("arch, stem, mean or std is not what it should be")
    if not 1 <= int(card.image_size) <= MAX_IMAGE_SIZE or not 0 < float(card.eval_crop_ratio) <= 1:
        raise ValueError(f"image_size={card.image_size}, eval_crop_ratio={card.eval_crop_ratio}")
    return card


def _require_fit(state: dict[str, Tensor], card: BackboneCard, path: Path) -> None:
    """ValueError unless the file holds the tensors of its backbone; told before memory is given to the backbone."""
    with torch.device("meta"):
        wanted = build_backbone(card.arch, stem=card.stem).state_dict()
    wrong = [
        name
        for name in wanted.keys() | state.keys()
        if name not in wanted or name not in state or wanted[name].shape != state[name].shape
    ]
    if wrong:
        raise ValueError(f"run={path}: its weights are not those of {card.arch} ({len(wrong)} differ: {min(wrong)})")


def random_backbone(card: BackboneCard, *, seed: int) -> nn.Module:
    """The same architecture with fresh weights: what pre-training has to beat."""
    return build_seeded(lambda: build_backbone(card.arch, stem=card.stem), seed).eval()
