"""Infer the backbone of a state dict from names and shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mocokit.export.to_torchvision import vit_names
from mocokit.foreign.layouts import State, shorten
from mocokit.nets.backbones import BACKBONES, build_backbone
from mocokit.nets.timm_models import VITS

MORE_VITS = ("timm/vit_small_patch8_224", "timm/vit_base_patch8_224", "timm/vit_large_patch16_224")
"""ViTs that DINO and torchvision publish, beside mocokit's own VITS."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Differences between a state dict and a backbone's; false if there are none."""

    arch: str
    """The backbone that was compared."""
    unknown: list[str]
    """Names that the backbone does not have."""
    missing: list[str]
    """Names that the state dict does not have."""
    shapes: list[str]
    """Names with another shape, as "name (64, 3, 3, 3), not (64, 3, 7, 7)"."""

    def __len__(self) -> int:
        return len(self.unknown) + len(self.missing) + len(self.shapes)

    def __str__(self) -> str:
        parts = (("unknown keys", self.unknown), ("missing", self.missing), ("other shapes", self.shapes))
        return "; ".join(f"{what}: {shorten(names)}" for what, names in parts if names)


def rename_backbone(state: State) -> State:
    """Return the weights under torchvision's names (ResNets) or timm's (ViTs).

    Raises:
        ValueError: lightly's own ResNet inside nn.Sequential, which computes something no backbone of mocokit does.

    """
    if "conv_proj.weight" in state:  # torchvision's ViT
        names = {theirs: ours for ours, theirs in vit_names(depth=64).items()}
        return {names.get(name, name): value for name, value in state.items()}
    if not any(name[0].isdigit() for name in state):
        return state
    # lightly's ResNet calls ReLU as a function after bn1. It is no child module, so nn.Sequential(*children) lacks it,
    # and layer1 moves up to number 2. Names and shapes alone would pass as a resnet18 with other features.
    if "2.0.conv1.weight" in state:
        raise ValueError(
            "lightly's ResNetGenerator in nn.Sequential has no ReLU after its first BatchNorm, which no backbone of "
            "mocokit computes; give lightly a torchvision ResNet instead"
        )
    # lightly with a torchvision ResNet: nn.Sequential(*list(resnet.children())[:-1]).
    # Children 2 and 3, ReLU and max-pool, have no weights.
    children = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    parts = {name: name.partition(".") for name in state}
    return {f"{children.get(child, child)}{dot}{rest}": state[name] for name, (child, dot, rest) in parts.items()}


def infer_architecture(state: State) -> tuple[str, str]:
    """Return (arch, stem) of the backbone with the names and shapes of `state`.

    Raises:
        ValueError: There is none; the message says how the nearest backbone differs.

    """
    stem = infer_stem(state)
    archs = (*VITS, *MORE_VITS) if "patch_embed.proj.weight" in state else tuple(BACKBONES)
    found = [compare(state, arch, stem) for arch in archs]
    best = min(found, key=len)
    if len(best):
        raise ValueError(f"no backbone of mocokit has these weights; the nearest is {best.arch}: {best}")
    return best.arch, stem


def infer_stem(state: State) -> str:
    """Return "small" for a ResNet whose first kernel is 3x3, else "imagenet"."""
    first = state.get("conv1.weight")
    return "small" if first is not None and first.shape[-1] == 3 else "imagenet"


def compare(state: Mapping[str, Tensor], arch: str, stem: str) -> Difference:
    """Return how `state` differs from the backbone's; BatchNorm counters may be missing (old torch)."""
    wanted = _shapes(arch, stem)
    return Difference(
        arch=arch,
        unknown=[name for name in state if name not in wanted],
        missing=[name for name in wanted if name not in state and not name.endswith("num_batches_tracked")],
        shapes=[
            f"{name} {tuple(state[name].shape)}, not {shape}"
            for name, shape in wanted.items()
            if name in state and tuple(state[name].shape) != shape
        ],
    )


@cache
def _shapes(arch: str, stem: str) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of a backbone's state, without allocating its weights."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build_backbone(arch, stem=stem).state_dict().items()}
