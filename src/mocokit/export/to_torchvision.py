"""torchvision: a state dict under its names, for its ResNets and Vision Transformers."""

from pathlib import Path

import torch
import torchvision
from torch import nn

from mocokit.engine.backbone_file import BackboneCard, LoadedBackbone
from mocokit.export.targets import Exported, require_suffix
from mocokit.nets.backbones import SMALL_PADDING
from mocokit.nets.timm_models import at_image_size, find_timm

VITS = {
    "vit_base_patch16_224": "vit_b_16",
    "vit_base_patch32_224": "vit_b_32",
    "vit_large_patch16_224": "vit_l_16",
    "vit_large_patch32_224": "vit_l_32",
    "vit_huge_patch14_224": "vit_h_14",
}
"""Name of a ViT in timm -> name of the same network in torchvision."""

BLOCK_PARTS = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attn.qkv.": "self_attention.in_proj_",
    "attn.proj.": "self_attention.out_proj.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.3.",
}
"""Parts of a ViT block: name in timm -> name in torchvision; shapes are the same."""


def export_torchvision(loaded: LoadedBackbone, out: Path) -> Exported:
    """Write `out` (.pth), which torchvision's network loads strictly once its classifier is an Identity.

    Raises:
        ValueError: torchvision has no such network; the message names targets that can hold it.

    """
    require_suffix(out, ".pth", ".pt")
    net, lines = _torchvision_model(loaded.card)
    state = at_image_size(loaded.backbone, loaded.card.image_size).state_dict()
    if find_timm(loaded.card.arch):
        names = vit_names(depth=sum(name.endswith("attn.qkv.weight") for name in state))
        state = {names[name]: value for name, value in state.items()}
    torch.save({name: value.contiguous() for name, value in state.items()}, out)
    net.load_state_dict(torch.load(out, weights_only=True))
    return Exported(
        files=(out,),
        readers={f"torchvision {torchvision.__version__}": net.eval()},
        usage="\n".join(["import torch, torchvision", *lines, f'net.load_state_dict(torch.load("{out.name}"))']),
    )


def _torchvision_model(card: BackboneCard) -> tuple[nn.Module, list[str]]:
    """Return torchvision's network without its classifier, and the lines of code that build it."""
    vit = find_timm(card.arch)
    if vit and vit.name in VITS and not vit.arguments:
        net = getattr(torchvision.models, VITS[vit.name])(image_size=card.image_size)
        net.heads = nn.Identity()
        build = f"net = torchvision.models.{VITS[vit.name]}(image_size={card.image_size})"
        return net, [build, "net.heads = torch.nn.Identity()"]
    if vit or not hasattr(torchvision.models, card.arch):
        others = "timm, huggingface, onnx or safetensors" if vit else "onnx or safetensors"
        raise ValueError(f"to=torchvision: it has no {card.arch}; use --to {others}")
    net = getattr(torchvision.models, card.arch)()
    lines = [f"net = torchvision.models.{card.arch}()"]
    net.fc = nn.Identity()
    lines.append("net.fc = torch.nn.Identity()")
    if card.stem in SMALL_PADDING:
        padding = SMALL_PADDING[card.stem]
        net.conv1 = nn.Conv2d(3, 64, 3, padding=padding, bias=False)
        net.maxpool = nn.Identity()
        lines.append(f"net.conv1 = torch.nn.Conv2d(3, 64, 3, padding={padding}, bias=False)")
        lines.append("net.maxpool = torch.nn.Identity()")
    return net, lines


def vit_names(depth: int) -> dict[str, str]:
    """Return {name in timm: name in torchvision} for each parameter of a ViT with `depth` blocks."""
    layers = {"patch_embed.proj.": "conv_proj.", "norm.": "encoder.ln."}
    for block in range(depth):
        for ours, theirs in BLOCK_PARTS.items():
            layers[f"blocks.{block}.{ours}"] = f"encoder.layers.encoder_layer_{block}.{theirs}"
    names = {ours + kind: theirs + kind for ours, theirs in layers.items() for kind in ("weight", "bias")}
    return {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding", **names}
