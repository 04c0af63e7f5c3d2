"""Compare a state dict with backbones by names and shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mocokit.foreign.projects import HEADS
from mocokit.foreign.vits import TIMM_HEADS, VitShape, read_shape
from mocokit.foreign.weights import State, shorten
from mocokit.nets.backbones import BACKBONES, build_backbone

SMALL_PADDINGS = {1: "small", 2: "small_pad2"}
"""Padding of a 3x3 first convolution -> stem."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Differences between a state dict and a backbone's; false if there are none."""

    arch: str
    """The backbone that was compared."""
    unknown: list[str]
    """Names that the backbone does not have, heads excepted."""
    missing: list[str]
    """Names that the state dict does not have."""
    shapes: list[str]
    """Names with another shape, as "name (64, 3, 3, 3), not (64, 3, 7, 7)"."""
    heads: list[str]
    """Names of heads, which do not count as a difference."""

    def __len__(self) -> int:
        return len(self.unknown) + len(self.missing) + len(self.shapes)

    def __str__(self) -> str:
        parts = (("unknown keys", self.unknown), ("missing", self.missing), ("other shapes", self.shapes))
        return "; ".join(f"{what}: {shorten(names)}" for what, names in parts if names)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Architecture whose weights a state dict holds exactly."""

    arch: str
    """A ResNet's name; for a ViT, its name with some number of heads."""
    vit: VitShape | None
    """Shape of a ViT; None for a ResNet."""
    small: bool
    """True for a ResNet whose first convolution is 3x3."""
    weights: State
    """The backbone's weights under its own names."""
    heads: list[str]
    """Names of the heads that are left out."""


def fit_architecture(state: State) -> Fit:
    """Return the architecture with the names and shapes of `state` (under torchvision's or timm's names).

    Raises:
        ValueError: There is none; the message says how the nearest differs.

    """
    vit = read_shape(state) if "patch_embed.proj.weight" in state else None
    stem = "small" if is_small(state) else "imagenet"
    archs = list(BACKBONES) if vit is None else [vit.arch(_some_heads(vit.width))]
    found = []
    for arch in archs:
        found.append(compare(state, arch, stem))
        if not found[-1]:
            break
    best = min(found, key=len)
    if best:
        raise ValueError(f"no backbone of mocokit has these weights; the nearest is {best.arch}: {best}")
    weights = {name: state[name] for name in wanted_shapes(best.arch, stem) if name in state}
    return Fit(arch=best.arch, vit=vit, small=stem == "small", weights=weights, heads=best.heads)


def fit_to(state: State, arch: str) -> Fit:
    """Return `arch` as the architecture of `state`.

    Raises:
        ValueError: The weights are not of this backbone; the message says how they differ.

    """
    vit = read_shape(state) if "patch_embed.proj.weight" in state else None
    stem = "small" if is_small(state) and arch in BACKBONES else "imagenet"
    difference = compare(state, arch, stem)
    if difference:
        raise ValueError(f"arch={arch}: the weights are not of this backbone; {difference}")
    weights = {name: state[name] for name in wanted_shapes(arch, stem) if name in state}
    return Fit(arch=arch, vit=vit, small=stem == "small", weights=weights, heads=difference.heads)


def _some_heads(width: int) -> int:
    """Return a number of heads that divides the width; shapes do not depend on it."""
    return TIMM_HEADS.get(width, 1)


def is_small(state: State) -> bool:
    """Return True for a ResNet whose first kernel is 3x3."""
    first = state.get("conv1.weight")
    return first is not None and first.ndim == 4 and first.shape[-1] == 3


def compare(state: Mapping[str, Tensor], arch: str, stem: str) -> Difference:
    """Return how `state` differs from the backbone's; BatchNorm counters may be missing (old torch)."""
    wanted = wanted_shapes(arch, stem)
    extra = [name for name in state if name not in wanted]
    return Difference(
        arch=arch,
        unknown=[name for name in extra if not HEADS.fullmatch(name.split(".")[0])],
        missing=[name for name in wanted if name not in state and not name.endswith("num_batches_tracked")],
        shapes=[
            f"{name} {tuple(state[name].shape)}, not {shape}"
            for name, shape in wanted.items()
            if name in state and tuple(state[name].shape) != shape
        ],
        heads=[name for name in extra if HEADS.fullmatch(name.split(".")[0])],
    )


@lru_cache(maxsize=64)
def wanted_shapes(arch: str, stem: str) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of a backbone's state, without allocating its weights."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build_backbone(arch, stem=stem).state_dict().items()}
