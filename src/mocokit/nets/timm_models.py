"""Backbones that timm builds: Vision Transformers by name, and every other model as `timm/NAME`."""

import copy
import difflib
from typing import Any, NamedTuple, cast

from torch import nn


class TimmModel(NamedTuple):
    """A timm model: its name, and further arguments of `timm.create_model`."""

    name: str
    arguments: dict[str, Any]


VITS = {
    "vit_tiny_patch16_224": TimmModel("vit_tiny_patch16_224", {}),
    "vit_small_patch16_224": TimmModel("vit_small_patch16_224", {}),
    "vit_small_patch16_224_h12": TimmModel("vit_small_patch16_224", {"num_heads": 12}),
    "vit_base_patch16_224": TimmModel("vit_base_patch16_224", {}),
}
"""`_h12` is MoCo v3's ViT-S: width 384 with 12 heads (moco-v3/vits.py), where DeiT and timm have 6."""


def find_timm(arch: str) -> TimmModel | None:
    """Return the timm model that `arch` names; None if it names none."""
    if arch.startswith("timm/"):
        return TimmModel(arch.removeprefix("timm/"), {})
    return VITS.get(arch)


def build_timm(model: TimmModel) -> Any:
    """Return a timm model with fresh weights and without classifier; a ViT accepts any image size.

    Raises:
        ValueError: timm has no such model; the message names similar ones.

    """
    import timm  # takes 2 s, so only runs that use a timm model import it

    if not timm.is_model(model.name):
        near = difflib.get_close_matches(model.name, timm.list_models(), n=3)
        raise ValueError(f"model.arch='timm/{model.name}': timm {timm.__version__} has no such model; near: {near}")
    try:
        return timm.create_model(model.name, num_classes=0, dynamic_img_size=True, **model.arguments)
    except TypeError:  # a convolutional model: has no such argument, and reads any size anyway
        return timm.create_model(model.name, num_classes=0, **model.arguments)


def at_image_size(backbone: nn.Module, image_size: int) -> nn.Module:
    """Return a backbone that computes the same on images of `image_size` pixels and accepts no other size.

    A ViT resamples its position embedding in each forward pass. The returned copy holds the resampled embedding, so
    that it can be exported. Other backbones are returned as they are.
    """
    if not getattr(backbone, "dynamic_img_size", False):
        return backbone
    fixed = copy.deepcopy(backbone)
    cast(Any, fixed).set_input_size(img_size=(image_size, image_size))
    return fixed
