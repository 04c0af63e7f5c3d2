"""Backbones by name: image (N, 3, H, W) -> feature (N, D)."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import nn
from torchvision.models import resnet as torchvision_resnet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from mocokit.nets.timm_models import VITS, build_timm, find_timm
from mocokit.settings import choose

M = TypeVar("M", bound=nn.Module)

STEMS = ("imagenet", "small", "small_pad2")
"""`imagenet`: 7x7 stride 2 and max-pool. `small`: 3x3 stride 1, no max-pool, for images of about 32 px (SimCLR app.
B.9). `small_pad2`: the same with a padding of 2, as solo-learn has it for CIFAR: features of 34 x 34 at 32 px."""

SMALL_PADDING = {"small": 1, "small_pad2": 2}
"""Stem -> padding of its 3x3 convolution."""


def narrow_resnet10(width: int) -> ResNet:
    """Return a ResNet of four BasicBlocks with 1, 2, 4 and 8 times `width` channels, for small images on a CPU."""
    net = ResNet(BasicBlock, [1, 1, 1, 1])
    net.inplanes = width
    net.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    for number in range(4):
        layer = net._make_layer(BasicBlock, width * 2**number, 1, stride=1 if number == 0 else 2)
        setattr(net, f"layer{number + 1}", layer)
    net.fc = nn.Linear(width * 8, 1)  # only declares the feature width; build_backbone removes it
    for module in net.modules():
        if isinstance(module, nn.Conv2d):  # torchvision's initialisation of its ResNets
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


BACKBONES: dict[str, Callable[[], ResNet]] = {
    "resnet10_w16": lambda: narrow_resnet10(16),
    "resnet10_w32": lambda: narrow_resnet10(32),
    "resnet10_w64": lambda: narrow_resnet10(64),
    "resnet18": torchvision_resnet.resnet18,
    "resnet34": torchvision_resnet.resnet34,
    "resnet50": torchvision_resnet.resnet50,
    "resnet101": torchvision_resnet.resnet101,
    "resnet152": torchvision_resnet.resnet152,
    "resnext50_32x4d": torchvision_resnet.resnext50_32x4d,
    "wide_resnet50_2": torchvision_resnet.wide_resnet50_2,
}


def build_backbone(arch: str, *, stem: str = "imagenet") -> nn.Module:
    """Return a torchvision ResNet, a ViT or any timm model (`timm/NAME`), without classifier.

    `feature_dim(backbone)` tells its width D. Parameter names are the library's own, so with the stem `imagenet`,
    `backbone.state_dict()` loads into the library's model with only the classifier missing.

    Raises:
        ValueError: Unknown `arch` or `stem`; the message lists the known ones.

    """
    choose("model.stem", stem, dict.fromkeys(STEMS))
    if model := find_timm(arch):
        if stem != "imagenet":
            raise ValueError(f"model.stem={stem!r}: {arch} has a stem of its own; leave out model.stem")
        net = build_timm(model)
        return declare_feature_dim(net, int(net.head_hidden_size))
    choose("model.arch", arch, dict.fromkeys([*sorted(BACKBONES), *VITS, "timm/NAME"]))
    net = BACKBONES[arch]()
    if stem in SMALL_PADDING:
        padding = SMALL_PADDING[stem]
        net.conv1 = nn.Conv2d(3, net.conv1.out_channels, kernel_size=3, stride=1, padding=padding, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = cast(nn.MaxPool2d, nn.Identity())
    return declare_feature_dim(net, net.fc.in_features)


def zero_init_residual(backbone: nn.Module) -> None:
    """Set the scale of the last BatchNorm of each residual branch to 0, so that each block starts as the identity.

    Goyal et al. 2017, sec. 5.1.

    Raises:
        ValueError: Not a torchvision ResNet.

    """
    blocks = [module for module in backbone.modules() if isinstance(module, BasicBlock | Bottleneck)]
    if not blocks:
        raise ValueError(
            "model.zero_init_residual=True: the backbone is no torchvision ResNet; leave it out, or give "
            "--model.no-zero-init-residual if the preset has it"
        )
    for block in blocks:
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        nn.init.zeros_(cast(nn.BatchNorm2d, last).weight)


def declare_feature_dim(backbone: nn.Module, feature_dim: int) -> nn.Module:
    """Record on any module that its features are (N, feature_dim); return it, without a classifier named `fc`."""
    if hasattr(backbone, "fc"):
        backbone.fc = nn.Identity()
    backbone.feature_dim = feature_dim  # type: ignore[assignment]
    return backbone


def feature_dim(backbone: nn.Module) -> int:
    """Return the width D of the backbone's features.

    Raises:
        ValueError: `declare_feature_dim` was never called. D is not probed, because a forward pass would change the
            running statistics of BatchNorm.

    """
    width = getattr(backbone, "feature_dim", None)
    if not isinstance(width, int):
        raise ValueError("backbone: feature_dim is not declared; tell it by mocokit.declare_feature_dim(backbone, D)")
    return width


def require_image_size(backbone: nn.Module, image_size: int, *, setting: str = "data.image_size") -> None:
    """Raise ValueError about `setting` if `backbone` can't read images of `image_size` pixels."""
    patch_px = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    if patch_px and image_size % patch_px[0]:
        raise ValueError(f"{setting}={image_size}: not a multiple of the backbone's patches of {patch_px[0]} px")
    declared = getattr(backbone, "default_cfg", {})  # timm's description of the model
    native_px = declared.get("input_size", (3, image_size))[1]
    if (
        declared.get("fixed_input_size")
        and not getattr(backbone, "dynamic_img_size", False)
        and image_size != native_px
    ):
        raise ValueError(f"{setting}={image_size}: this backbone reads {native_px} px only")


def build_seeded(build: Callable[[], M], seed: int) -> M:
    """Return `build()`, called with torch's CPU generator seeded; the caller's random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
