"""Which backbone some weights belong to, told by names and shapes."""

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
"""What DINO and torchvision publish beside VITS."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How weights differ from what a backbone needs."""

    arch: str
    unknown: list[str]
    missing: list[str]
    shapes: list[str]
    """As "name (64, 3, 3, 3), not (64, 3, 7, 7)"."""

    def __len__(self) -> int:
        return len(self.unknown) + len(self.missing) + len(self.shapes)

    def __str__(self) -> str:
        parts = (("unknown keys", self.unknown), ("missing", self.missing), ("other shapes", self.shapes))
        return "; ".join(f"{what}: {shorten(names)}" for what, names in parts if names)


def rename_backbone(state: State) -> State:
    """The weights under torchvision's names (ResNets) or timm's (ViTs).

    Raises:
        ValueError: lightly's own ResNet inside nn.Sequential, which is none of mocokit's backbones.

    """
    if "conv_proj.weight" in state:  # torchvision's ViT
        names = {theirs: ours for ours, theirs in vit_names(depth=64).items()}
        return {names.get(name, name): value for name, value in state.items()}
    if not any(name[0].isdigit() for name in state):
        return state
    if "2.0.conv1.weight" in state:  # its ReLU after bn1 is no child: nn.Sequential computes without it
        raise ValueError(
            "lightly's ResNetGenerator in nn.Sequential has no ReLU after its first BatchNorm, which no backbone of "
            "mocokit computes; give lightly a torchvision ResNet instead"
        )
    # lightly: nn.Sequential(*list(torchvision_resnet.children())[:-1])
    children = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    parts = {name: name.split(".", 1) for name in state}
    return {f"{children.get(child, child)}.{rest}": state[name] for name, (child, rest) in parts.items()}


def infer_architecture(state: State) -> tuple[str, str]:
    """(arch, stem) of the backbone whose names and shapes are those of `state`.

    Raises:
        ValueError: There is none; the message tells how the nearest one differs.

    """
    stem = stem_of(state)
    archs = (*VITS, *MORE_VITS) if "patch_embed.proj.weight" in state else tuple(BACKBONES)
    found = [compare(state, arch, stem) for arch in archs]
    best = min(found, key=len)
    if len(best):
        raise ValueError(f"no backbone that mocokit knows; the nearest is {best.arch}: {best}")
    return best.arch, stem


def stem_of(state: State) -> str:
    """`small` for a ResNet whose first kernel is 3x3."""
    first = state.get("conv1.weight")
    return "small" if first is not None and first.shape[-1] == 3 else "imagenet"


def compare(state: Mapping[str, Tensor], arch: str, stem: str) -> Difference:
    """How `state` differs from what the backbone needs; counters of BatchNorm may be missing (old torch)."""
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
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build_backbone(arch, stem=stem).state_dict().items()}
