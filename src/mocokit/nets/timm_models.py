"""Backbones that timm builds: Vision Transformers by their plain names, every other model as `timm/NAME`."""

import copy
import difflib
from typing import Any, NamedTuple, cast

from torch import nn


class TimmModel(NamedTuple):
    """A name of timm's, and what `timm.create_model` is told beside it."""

    name: str
    arguments: dict[str, Any]


VITS = {
    "vit_tiny_patch16_224": TimmModel("vit_tiny_patch16_224", {}),
    "vit_small_patch16_224": TimmModel("vit_small_patch16_224", {}),
    "vit_small_patch16_224_h12": TimmModel("vit_small_patch16_224", {"num_heads": 12}),
    "vit_base_patch16_224": TimmModel("vit_base_patch16_224", {}),
}
"""`_h12`: MoCo v3's ViT-S, whose 384 numbers are read by 12 heads where DeiT and timm have 6 (moco-v3/vits.py)."""


def find_timm(arch: str) -> TimmModel | None:
    """The timm model that `arch` names; None when it names none."""
    if arch.startswith("timm/"):
        return TimmModel(arch.removeprefix("timm/"), {})
    return VITS.get(arch)


def build_timm(model: TimmModel) -> Any:
    """The model with fresh weights and without classifier; a ViT fits its position embedding to any image size.

    Raises:
        ValueError: timm has no such model; the message names similar ones.

    """
    import timm  # 2 s: waits until somebody wants a timm model

    if not timm.is_model(model.name):
        near = difflib.get_close_matches(model.name, timm.list_models(), n=3)
        raise ValueError(f"model.arch='timm/{model.name}': timm {timm.__version__} has no such model; near: {near}")
    try:
        return timm.create_model(model.name, num_classes=0, dynamic_img_size=True, **model.arguments)
    except TypeError:  # a convolutional model, which needs no such promise
        return timm.create_model(model.name, num_classes=0, **model.arguments)


def at_image_size(backbone: nn.Module, image_size: int) -> nn.Module:
    """A backbone that computes the same for images of `image_size` pixels and for no others.

    A ViT resamples its position embedding in each forward pass; in the copy given back it is resampled for good.
    """
    if not getattr(backbone, "dynamic_img_size", False):
        return backbone
    fixed = copy.deepcopy(backbone)
    cast(Any, fixed).set_input_size(img_size=(image_size, image_size))
    return fixed
