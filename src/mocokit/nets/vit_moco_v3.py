"""MoCo v3's changes to a ViT: how it starts, and what of it stays as it started (MoCo v3 sec. 4.2 and 4.3)."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn


def init_as_moco_v3(vit: nn.Module) -> None:
    """Positions as fixed sines and cosines; Xavier-uniform weights, query, key and value apart; zero biases.

    Raises:
        ValueError: Not a ViT with a class token.

    """
    net = _require_vit(vit, "model.vit_init='moco-v3'")
    width = net.embed_dim
    with torch.no_grad():
        for name, module in vit.named_modules():
            if isinstance(module, nn.Linear):
                # A fused layer is three of (width, width): Xavier's bound would count its fan-out threefold.
                bound = math.sqrt(6 / (2 * width)) if name.endswith("qkv") else _xavier(module)
                module.weight.uniform_(-bound, bound)
                if module.bias is not None:
                    module.bias.zero_()
        net.cls_token.normal_(std=1e-6)
        patch = net.patch_embed.proj
        bound = math.sqrt(6 / (patch.weight[0].numel() + width))
        patch.weight.uniform_(-bound, bound)
        patch.bias.zero_()
        net.pos_embed.copy_(sincos_positions(net.patch_embed.grid_size, width))
    net.pos_embed.requires_grad_(False)


def freeze_patch_embed(vit: nn.Module) -> None:
    """Leave the patch projection as it is: its gradient comes in spikes, which destabilise training (sec. 4.2).

    Raises:
        ValueError: Not a ViT.

    """
    _require_vit(vit, "model.freeze_patch_embed=True").patch_embed.requires_grad_(False)


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """(1, 1 + height * width, dim) position embedding of a `grid`: zero for the class token, then row by row.

    A quarter of `dim` each: sine and cosine of the row and of the column, at wavelengths from 2 pi to 10000 * 2 pi.
    """
    if dim % 4:
        raise ValueError(f"model.arch: a width of {dim} does not split into sines and cosines of two coordinates")
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (columns, rows)]  # (height * width, dim / 4) each
    places = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros(1, dim, dtype=places.dtype), places])[None]


def _xavier(layer: nn.Linear) -> float:
    return math.sqrt(6 / (layer.in_features + layer.out_features))


def _require_vit(vit: nn.Module, setting: str) -> Any:
    if not all(hasattr(vit, part) for part in ("patch_embed", "pos_embed", "cls_token", "embed_dim")):
        raise ValueError(f"{setting}: the backbone is no ViT with a class token; choose model.arch=vit_... or leave it")
    return cast(Any, vit)
