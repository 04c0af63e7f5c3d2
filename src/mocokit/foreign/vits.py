"""Infer a Vision Transformer from its weights: all but the number of heads, which weights do not tell.

Shapes: width D, depth L, patches of p pixels, N patches in a square grid.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from mocokit.foreign.weights import State, shorten
from mocokit.nets.vit_moco_v3 import sincos_positions

TIMM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}
"""Width -> heads of timm's, DeiT's, DINO's, DINOv2's and torchvision's ViTs."""

MOCO_V3_HEADS = {192: 12, 384: 12, 768: 12, 1024: 16, 1280: 16}
"""Width -> heads of MoCo v3's ViTs (moco-v3/vits.py), and of solo-learn's for MoCo v3 and MAE."""

AMBIGUOUS = sorted(width for width in MOCO_V3_HEADS if MOCO_V3_HEADS[width] != TIMM_HEADS[width])
"""Widths that have different numbers of heads in different projects."""

_PLAIN = {"mlp_ratio": 4.0, "reg_tokens": 0, "no_embed_class": False, "qkv_bias": True}
_DINOV2 = {**_PLAIN, "patch_size": 14, "img_size": 518}
_REG4 = {**_DINOV2, "reg_tokens": 4, "no_embed_class": True}
_TI = {"embed_dim": 192, "depth": 12, "num_heads": 3}
_S = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_B = {"embed_dim": 768, "depth": 12, "num_heads": 12}
_L = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
_H = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
_G = {"embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 2 * 2.66667}
_224 = {**_PLAIN, "img_size": 224}

PLAIN_VITS: dict[str, dict[str, float]] = {
    "vit_tiny_patch16_224": {**_224, **_TI, "patch_size": 16},
    "vit_small_patch16_224": {**_224, **_S, "patch_size": 16},
    "vit_small_patch16_224_h12": {**_224, **_S, "patch_size": 16, "num_heads": 12},
    "vit_base_patch16_224": {**_224, **_B, "patch_size": 16},
    "timm/vit_small_patch8_224": {**_224, **_S, "patch_size": 8},
    "timm/vit_base_patch8_224": {**_224, **_B, "patch_size": 8},
    "timm/vit_base_patch32_224": {**_224, **_B, "patch_size": 32},
    "timm/vit_large_patch16_224": {**_224, **_L, "patch_size": 16},
    "timm/vit_large_patch32_224": {**_224, **_L, "patch_size": 32},
    "timm/vit_huge_patch14_224": {**_224, **_H, "patch_size": 14},
}
"""Backbone -> arguments of timm's VisionTransformer."""

SCALED_VITS: dict[str, dict[str, float]] = {
    f"timm/vit_{size}_patch14_{kind}dinov2": {**options, **dimensions}
    for size, dimensions in {"small": _S, "base": _B, "large": _L}.items()
    for kind, options in {"": _DINOV2, "reg4_": _REG4}.items()
}
"""The same for ViTs with LayerScale."""

GATED_VITS: dict[str, dict[str, float]] = {
    "timm/vit_giant_patch14_dinov2": {**_DINOV2, **_G},
    "timm/vit_giant_patch14_reg4_dinov2": {**_REG4, **_G},
}
"""The same for ViTs with LayerScale and SwiGLU."""


@dataclass(frozen=True, kw_only=True)
class VitShape:
    """All of a ViT but its heads."""

    arguments: dict[str, float]
    """Arguments of timm's VisionTransformer, without `num_heads`."""
    layer_scale: bool
    gated: bool
    """True for SwiGLU instead of an MLP."""

    @property
    def width(self) -> int:
        """D."""
        return int(self.arguments["embed_dim"])

    @property
    def image_size(self) -> int:
        """Side of the images (pixels) that the grid of positions was made for."""
        return int(self.arguments["img_size"])

    def arch(self, num_heads: int) -> str:
        """Return the backbone's name: the nearest of the known ones, with the arguments that differ.

        Raises:
            ValueError: mocokit has no ViT of this kind.

        """
        if self.gated and not self.layer_scale:
            raise ValueError("no backbone of mocokit has SwiGLU without LayerScale")
        known = GATED_VITS if self.gated else SCALED_VITS if self.layer_scale else PLAIN_VITS
        wanted = {**self.arguments, "num_heads": num_heads}
        changes = {
            name: [key for key, value in wanted.items() if not _is_same(key, value, base[key])]
            for name, base in known.items()
        }
        best = min(changes, key=lambda name: (len(changes[name]), name.endswith("_h12")))
        options = ",".join(f"{key}={wanted[key]}" for key in changes[best])
        return f"{best}:{options}" if options else best


def _is_same(key: str, one: float, other: float) -> bool:
    """Return True if two values of an argument build the same network."""
    return math.isclose(one, other, rel_tol=1e-3) if key == "mlp_ratio" else one == other


def read_shape(state: State) -> VitShape:
    """Return a ViT's shape from its weights under timm's names.

    Raises:
        ValueError: It lacks a part of each ViT here, or its positions are no square grid.

    """
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        raise ValueError(f"no backbone of mocokit has these weights; a ViT has {shorten(missing)} too")
    patch = state["patch_embed.proj.weight"]
    hidden = state["blocks.0.mlp.fc1.weight"]
    positions = state["pos_embed"]
    back = state["blocks.0.mlp.fc2.weight"]
    tokens = state.get("reg_token", positions[:, :0])
    if [value.ndim for value in (patch, hidden, back, positions, tokens)] != [4, 2, 2, 3, 3] or patch.shape[1] != 3:
        raise ValueError(f"no backbone of mocokit has a patch embedding of shape {tuple(patch.shape)} or such parts")
    width = len(patch)
    if not width or not len(hidden) or patch.shape[-1] != patch.shape[-2]:
        raise ValueError(f"no backbone of mocokit has a patch embedding of shape {tuple(patch.shape)}")
    registers = tokens.shape[1]
    grid, covers_class = _grid(positions.shape[1], registers)
    arguments: dict[str, float] = {
        "embed_dim": width,
        "depth": len({name.split(".")[1] for name in state if re.match(r"blocks\.\d+\.", name)}),
        "patch_size": patch.shape[-1],
        "img_size": grid * patch.shape[-1],
        "mlp_ratio": _mlp_ratio(len(hidden), width),
        "reg_tokens": registers,
        "no_embed_class": not covers_class,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
    }
    gated = back.shape[1] * 2 == len(hidden)
    return VitShape(arguments=arguments, layer_scale="blocks.0.ls1.gamma" in state, gated=gated)


def _grid(positions: int, registers: int) -> tuple[int, bool]:
    """Return the side of the grid of patches, and True if class token and registers have positions too."""
    for others in (0, 1 + registers):
        side = math.isqrt(max(positions - others, 0))
        if side and side * side == positions - others:
            return side, others > 0
    raise ValueError(
        f"no backbone of mocokit has {positions} positions: they are no square grid, with or without class"
    )


def _mlp_ratio(hidden: int, width: int) -> float:
    """Return a ratio of which timm makes `hidden` again, as int(width * ratio)."""
    ratio = round(hidden / width, 5)
    return ratio if int(width * ratio) == hidden else round((hidden + 0.5) / width, 6)


def fixed_positions(state: State) -> str:
    """Return whose fixed sine-cosine positions a ViT has: "MoCo v3" (rows first), "MAE" (columns first), or empty.

    Both projects make the same formula for the two coordinates, in the opposite order.
    """
    positions = state["pos_embed"].float()  # (1, 1 + N, D)
    side = math.isqrt(positions.shape[1] - 1)
    width = positions.shape[2]
    if width % 4 or side * side != positions.shape[1] - 1:
        return ""
    rows_first = sincos_positions((side, side), width).float()  # (1, 1 + N, D)
    halves = rows_first.split(width // 2, dim=2)
    columns_first = torch.cat([halves[1], halves[0]], dim=2)
    for name, fixed in (("MoCo v3", rows_first), ("MAE", columns_first)):
        if _is_near(positions, fixed):
            return name
    return ""


def _is_near(positions: Tensor, fixed: Tensor) -> bool:
    """Return True if positions are the formula's, up to float16's rounding of angles and values."""
    return positions.shape == fixed.shape and bool((positions - fixed).abs().max() < 1e-2)
