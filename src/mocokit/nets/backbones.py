"""Backbones by name: image (N, 3, H, W) -> feature (N, D)."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import nn
from torchvision.models import resnet as torchvision_resnet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from mocokit.nets.timm_models import VITS, build_timm, find_timm

M = TypeVar("M", bound=nn.Module)

STEMS = ("imagenet", "small")
"""`imagenet`: 7x7 stride 2 and max-pool. `small`: 3x3 stride 1, no max-pool (32 px and the like; SimCLR app. B.9)."""


def _narrow_resnet10(width: int) -> ResNet:
    """Four BasicBlocks of `width`, 2, 4 and 8 times `width` channels, for small images on a CPU."""
    net = ResNet(BasicBlock, [1, 1, 1, 1])
    net.inplanes = width
    net.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    for number in range(4):
        layer = net._make_layer(BasicBlock, width * 2**number, 1, stride=1 if number == 0 else 2)
        setattr(net, f"layer{number + 1}", layer)
    net.fc = nn.Linear(width * 8, 1)  # declares the feature width; replaced by build_backbone
    for module in net.modules():
        if isinstance(module, nn.Conv2d):  # as torchvision initialises its ResNets
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


BACKBONES: dict[str, Callable[[], ResNet]] = {
    "resnet10_w16": lambda: _narrow_resnet10(16),
    "resnet10_w32": lambda: _narrow_resnet10(32),
    "resnet10_w64": lambda: _narrow_resnet10(64),
    "resnet18": torchvision_resnet.resnet18,
    "resnet34": torchvision_resnet.resnet34,
    "resnet50": torchvision_resnet.resnet50,
    "resnet101": torchvision_resnet.resnet101,
    "resnet152": torchvision_resnet.resnet152,
    "resnext50_32x4d": torchvision_resnet.resnext50_32x4d,
    "wide_resnet50_2": torchvision_resnet.wide_resnet50_2,
}


def build_backbone(arch: str, *, stem: str = "imagenet") -> nn.Module:
    """A torchvision ResNet, a ViT, or any timm model (`timm/NAME`), without classifier; `feature_dim(...)` tells D.

    Parameter names are the library's own, so `backbone.state_dict()` loads into its model with only the classifier
    missing (stem `imagenet`).

    Raises:
        ValueError: Unknown `arch` or `stem`; the message lists the known ones.

    """
    if stem not in STEMS:
        raise ValueError(f"model.stem={stem!r}: unknown stem; choose one of {list(STEMS)}")
    if model := find_timm(arch):
        if stem != "imagenet":
            raise ValueError(f"model.stem={stem!r}: {arch} has a stem of its own; leave out model.stem")
        net = build_timm(model)
        return declare_feature_dim(net, int(net.head_hidden_size))
    if arch not in BACKBONES:
        known = [*sorted(BACKBONES), *VITS]
        raise ValueError(f"model.arch={arch!r}: unknown backbone; choose one of {known}, or timm/NAME")
    net = BACKBONES[arch]()
    if stem == "small":
        net.conv1 = nn.Conv2d(3, net.conv1.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = cast(nn.MaxPool2d, nn.Identity())
    return declare_feature_dim(net, net.fc.in_features)


def zero_init_residual(backbone: nn.Module) -> None:
    """Let each residual branch of a ResNet start as zero, by the scale of its last BatchNorm (Goyal et al. 2017).

    Raises:
        ValueError: No ResNet of torchvision's.

    """
    blocks = [module for module in backbone.modules() if isinstance(module, BasicBlock | Bottleneck)]
    if not blocks:
        raise ValueError("model.zero_init_residual=True: the backbone is no torchvision ResNet; leave it out")
    for block in blocks:
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        nn.init.zeros_(cast(nn.BatchNorm2d, last).weight)


def declare_feature_dim(backbone: nn.Module, feature_dim: int) -> nn.Module:
    """Say how wide the (N, D) features of any module are; a classifier named `fc` is removed."""
    if hasattr(backbone, "fc"):
        backbone.fc = nn.Identity()
    backbone.feature_dim = feature_dim  # type: ignore[assignment]
    return backbone


def feature_dim(backbone: nn.Module) -> int:
    """Width D of the backbone's features.

    Raises:
        ValueError: The module never declared it (it is not probed: a forward pass would move BatchNorm statistics).

    """
    width = getattr(backbone, "feature_dim", None)
    if not isinstance(width, int):
        raise ValueError("backbone: feature_dim is not declared; wrap it in declare_feature_dim(backbone, D)")
    return width


def require_image_size(backbone: nn.Module, image_size: int, *, setting: str = "data.image_size") -> None:
    """Raise ValueError about `setting` when `backbone` can't read images of `image_size` pixels."""
    patch_px = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    if patch_px and image_size % patch_px[0]:
        raise ValueError(f"{setting}={image_size}: not a multiple of the backbone's patches of {patch_px[0]} px")
    declared = getattr(backbone, "default_cfg", {})
    native_px = declared.get("input_size", (3, image_size))[1]
    if (
        declared.get("fixed_input_size")
        and not getattr(backbone, "dynamic_img_size", False)
        and image_size != native_px
    ):
        raise ValueError(f"{setting}={image_size}: this backbone reads {native_px} px only")


def build_seeded(build: Callable[[], M], seed: int) -> M:
    """Call `build` with torch's generator seeded, and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
