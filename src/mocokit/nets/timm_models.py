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


OPTIONS: dict[str, tuple[type[int] | type[float] | type[bool], float]] = {
    "embed_dim": (int, 8192),
    "depth": (int, 128),
    "num_heads": (int, 128),
    "patch_size": (int, 128),
    "img_size": (int, 4096),
    "mlp_ratio": (float, 16),
    "reg_tokens": (int, 256),
    "no_embed_class": (bool, 1),
    "qkv_bias": (bool, 1),
}
"""Option of a ViT in `NAME:option=value,...` -> type, and largest value: a name may come from a stranger's file."""


def find_timm(arch: str) -> TimmModel | None:
    """Return the timm model that `arch` names; None if it names none.

    Args:
        arch: `timm/NAME`, or one of `VITS`; options of a ViT may follow, as in
            `timm/vit_small_patch14_dinov2:img_size=224,num_heads=12`.

    Raises:
        ValueError: An option is unknown or out of range.

    """
    name, colon, options = arch.partition(":")
    model = TimmModel(name.removeprefix("timm/"), {}) if name.startswith("timm/") else VITS.get(name)
    if model is None or not colon:
        return model
    return model._replace(
        arguments={**model.arguments, **dict(_read_option(arch, text) for text in options.split(","))}
    )


def _read_option(arch: str, text: str) -> tuple[str, float]:
    """Return the name and value of one `option=value`."""
    name, _, value = text.partition("=")
    if name not in OPTIONS:
        raise ValueError(f"model.arch={arch!r}: {name!r} is no option; there are {', '.join(OPTIONS)}")
    kind, largest = OPTIONS[name]
    try:
        number = {"True": True, "False": False}[value] if kind is bool else kind(value)
    except (ValueError, KeyError) as error:
        raise ValueError(f"model.arch={arch!r}: {text!r} is no {kind.__name__}") from error
    smallest = 1 if kind is int and name != "reg_tokens" else 0
    if not smallest <= number <= largest:
        raise ValueError(f"model.arch={arch!r}: {text!r} is not in {smallest}..{largest:g}")
    return name, number


def build_timm(model: TimmModel) -> Any:
    """Return a timm model with fresh weights and without classifier; a ViT accepts any image size.

    Raises:
        ValueError: timm has no such model (the message names similar ones), or it does not take these options.

    """
    import timm  # takes 2 s, so only runs that use a timm model import it

    if not timm.is_model(model.name):
        near = difflib.get_close_matches(model.name, timm.list_models(), n=3)
        raise ValueError(f"model.arch='timm/{model.name}': timm {timm.__version__} has no such model; near: {near}")
    try:
        return timm.create_model(model.name, num_classes=0, dynamic_img_size=True, **model.arguments)
    except TypeError as error:  # a convolutional model: has no such argument, and reads any size anyway
        if model.arguments:
            raise ValueError(f"model.arch='timm/{model.name}': does not take {model.arguments}") from error
        return timm.create_model(model.name, num_classes=0)
    except (AssertionError, ZeroDivisionError) as error:  # heads that do not divide the width
        raise ValueError(f"model.arch='timm/{model.name}': can't be built with {model.arguments}: {error}") from error


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
