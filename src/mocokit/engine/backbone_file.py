"""`backbone.safetensors`: a backbone's weights under torchvision's or timm's names, and a card on how to use them.

`torchvision.models.resnet50().load_state_dict(load_file(path), strict=False)` misses only `fc.*`.
"""

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mocokit.data.decode.deep import ValueRanges
from mocokit.data.sources.limits import is_pointer_file
from mocokit.data.value_range import check_ranges
from mocokit.engine.checkpoint import LFS_ADVICE, UNREADABLE, write_atomically
from mocokit.engine.numerics import NUMERICS, describe_other_numerics
from mocokit.nets.backbones import build_backbone, build_seeded
from mocokit.nets.pixels import PixelNormalize
from mocokit.settings import require

LOGGER = logging.getLogger("mocokit")

MAX_IMAGE_SIZE = 2**13
"""Largest side of an image (pixels) that a card may name."""

OWN = "own/"
"""Start of `arch` for a module that is not part of mocokit; the name of its class follows."""

_NEEDS_MODULE = "its backbone {} is not part of mocokit; give the module: {}"


@dataclass(frozen=True, kw_only=True)
class BackboneCard:
    """Architecture of a backbone, and preparation of its images."""

    arch: str
    stem: str
    image_size: int
    """Side of the training images (pixels)."""
    eval_crop_ratio: float
    """Side of the center crop for evaluation, as a part of the resized image's shorter side."""
    mean: tuple[float, ...]
    """Mean of the channels R, G, B, in 0..1, that images are normalised with."""
    std: tuple[float, ...]
    """Standard deviation of the channels, in 0..1."""
    step: int
    """Optimizer steps that the weights were trained for, as far as mocokit knows."""
    origin: str = ""
    """File and layout that the weights were imported from; empty: a run of mocokit."""
    data: str = ""
    """Name of the training images: the end of their location; empty: the file does not tell."""
    data_identity: str = ""
    """Digest of the training images (data/sources/identity.py); empty: the file does not tell."""
    numerics: int = 1
    """Version of the numbers that the weights were trained with (engine/numerics.py); 1 if the file names none."""
    value_ranges: ValueRanges = field(default_factory=dict)
    """Sample type of more than 8 bits -> (low, high): the values that the training images were mapped to 0..255
    with. Empty: there were 8-bit images only."""

    @property
    def is_own(self) -> bool:
        """True if the backbone is a module of the user's, which mocokit can't build."""
        return self.arch.startswith(OWN)


@dataclass(frozen=True, kw_only=True)
class LoadedBackbone:
    """A frozen backbone with the preparation of its images."""

    backbone: nn.Module
    """(N, 3, H, W) normalised images -> (N, D), in eval mode."""
    pixels: PixelNormalize
    """(N, 3, H, W) uint8 images -> normalised images."""
    card: BackboneCard
    path: Path
    """File that the weights were read from."""


def save_backbone(path: Path, backbone: nn.Module, card: BackboneCard) -> None:
    """Write the weights with the card as metadata; after a crash the file is complete or absent."""
    save_weights(path, backbone.state_dict(), card)


def save_weights(path: Path, weights: Mapping[str, Tensor], card: BackboneCard) -> None:
    """Write a backbone's state dict with the card as metadata; see `save_backbone`."""
    state = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    metadata = {"format": "pt", "mocokit": json.dumps(asdict(card))}
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata=metadata))


def load_backbone(run_or_file: str | Path, *, backbone: nn.Module | None = None) -> LoadedBackbone:
    """Return the pre-trained backbone of a run folder or of a `backbone.safetensors` file.

    Args:
        run_or_file: Run folder or backbone file.
        backbone: Module that takes the weights, for a run that was pre-trained with a module of your own; it is
            copied, not changed. None: mocokit builds the card's backbone.

    Raises:
        ValueError: The file is missing, damaged, or not written by mocokit; its weights do not fit the backbone; or
            the card names a module of your own and `backbone` is None.

    """
    path = Path(run_or_file).expanduser()
    require(path.exists(), "run", run_or_file, "no such run folder or backbone file")
    path = path / "backbone.safetensors" if path.is_dir() else path
    require(path.is_file(), "run", run_or_file, f"no backbone there; {path.name} is written at the first checkpoint")
    require(not is_pointer_file(path), "run", path, LFS_ADVICE)
    state, card = _read_file(path)
    if backbone is None:
        require(not card.is_own, "run", path, _NEEDS_MODULE.format(card.arch, "load_backbone(run, backbone=...)"))
        with torch.device("meta"):  # a card that names a huge network is refused before memory is allocated for it
            _require_fit(state, build_backbone(card.arch, stem=card.stem), card.arch, path)
        net = build_backbone(card.arch, stem=card.stem)
    else:
        _require_fit(state, backbone, f"the given {type(backbone).__name__}", path)
        net = copy.deepcopy(backbone).cpu()
    net.load_state_dict(state)
    if not card.origin and card.numerics != NUMERICS:
        LOGGER.warning("%s: %s", path, describe_other_numerics(card.numerics))
    return LoadedBackbone(backbone=net.eval(), pixels=PixelNormalize(card.mean, card.std), card=card, path=path)


def exported_step(path: Path) -> int | None:
    """Return the step of the weights in a backbone file, read from its card; None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads((file.metadata() or {})["mocokit"])["step"])
    except (SafetensorError, *UNREADABLE):
        return None


def _read_file(path: Path) -> tuple[dict[str, Tensor], BackboneCard]:
    """Return weights and card; raise ValueError if the file is damaged or has no card."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, *UNREADABLE) as error:
        raise ValueError(f"run={path}: damaged file ({error})") from error
    require("mocokit" in metadata, "run", path, "not written by mocokit; it does not say which backbone it holds")
    try:
        return state, _read_card(metadata["mocokit"])
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"run={path}: damaged card ({error})") from error


def _read_card(text: str) -> BackboneCard:
    """Parse and check a card; it comes from a file that anybody may have written."""
    values = json.loads(text)
    values["mean"] = tuple(map(float, values["mean"]))
    values["std"] = tuple(map(float, values["std"]))
    values["value_ranges"] = check_ranges(values.get("value_ranges", {}))
    card = BackboneCard(**values)
    if not (isinstance(card.arch, str) and isinstance(card.stem, str) and len(card.mean) == len(card.std) == 3):
        raise ValueError("arch and stem must be text, mean and std three numbers each")
    if not 1 <= int(card.image_size) <= MAX_IMAGE_SIZE or not 0 < float(card.eval_crop_ratio) <= 1:
        raise ValueError(f"image_size={card.image_size}, eval_crop_ratio={card.eval_crop_ratio}")
    return card


def _require_fit(state: Mapping[str, Tensor], backbone: nn.Module, name: str, path: Path) -> None:
    """Raise ValueError unless the file holds exactly the backbone's tensors, with their shapes."""
    wanted = backbone.state_dict()
    wrong = [
        name
        for name in wanted.keys() | state.keys()
        if name not in wanted or name not in state or wanted[name].shape != state[name].shape
    ]
    if wrong:
        raise ValueError(f"run={path}: its weights are not those of {name} ({len(wrong)} differ: {min(wrong)})")


def random_backbone(card: BackboneCard, *, seed: int, backbone: nn.Module | None = None) -> nn.Module:
    """Return the card's architecture with fresh weights: the baseline that pre-training has to beat.

    Args:
        card: Names the architecture.
        seed: Seed of the weights.
        backbone: Module of the user's that an `own/` card stands for; it is copied, not changed. Other cards need
            none and use none.

    Raises:
        ValueError: The card is `own/` and `backbone` is None, or a part of it has no reset_parameters().

    """
    if not card.is_own:
        return build_seeded(lambda: build_backbone(card.arch, stem=card.stem), seed).eval()
    if backbone is None:
        call = "random_backbone(card, seed=..., backbone=...)"
        raise ValueError(f"backbone=None: {_NEEDS_MODULE.format(card.arch, call)}")
    fresh = copy.deepcopy(backbone).cpu()
    return build_seeded(lambda: _reset(fresh), seed).eval()


def _reset(module: nn.Module) -> nn.Module:
    """Draw all weights anew, parts before the whole, so that a module's own rule has the last word."""
    for part in reversed(list(module.modules())):
        # nn.MultiheadAttention and nn.Transformer spell it with an underscore.
        reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
        if reset is not None:
            reset()
        elif next(part.parameters(recurse=False), None) is not None:  # would keep its trained values
            raise ValueError(
                f"backbone={type(module).__name__}: its {type(part).__name__} has weights but no reset_parameters(), "
                "so there is no random baseline; add that method"
            )
    return module
