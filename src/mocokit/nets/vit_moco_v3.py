"""MoCo v3's changes to a ViT: its initialisation, and the parameters that stay frozen (MoCo v3 sec. 4.2 and 4.3)."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn


def init_as_moco_v3(vit: nn.Module) -> None:
    """Initialise a ViT as MoCo v3 does, in place.

    Fixed sine-cosine position embedding; Xavier-uniform weights, with query, key and value as separate matrices; zero
    biases; class token from a normal distribution of standard deviation 1e-6.

    Raises:
        ValueError: Not a ViT with a class token.

    """
    net = _require_vit(vit, "model.vit_init='moco-v3'")
    width = net.embed_dim
    with torch.no_grad():
        for name, module in vit.named_modules():
            if isinstance(module, nn.Linear):
                # timm fuses query, key and value into one (3 * width, width) layer. Xavier's bound of the fused layer
                # would count its fan-out threefold, so take the bound of one (width, width) matrix.
                both = 2 * width if name.endswith("qkv") else module.in_features + module.out_features
                bound = math.sqrt(6 / both)
                module.weight.uniform_(-bound, bound)
                if module.bias is not None:
                    module.bias.zero_()
        net.cls_token.normal_(std=1e-6)
        patch = net.patch_embed.proj  # a convolution (width, 3, 16, 16), initialised as a linear layer 768 -> width
        bound = math.sqrt(6 / (patch.weight[0].numel() + width))
        patch.weight.uniform_(-bound, bound)
        patch.bias.zero_()
        net.pos_embed.copy_(sincos_positions(net.patch_embed.grid_size, width))
    net.pos_embed.requires_grad_(False)


def freeze_patch_embed(vit: nn.Module) -> None:
    """Freeze the patch projection: its gradient has spikes, which destabilise training (MoCo v3 sec. 4.2).

    Raises:
        ValueError: Not a ViT.

    """
    _require_vit(vit, "model.freeze_patch_embed=True").patch_embed.requires_grad_(False)


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Return the (1, 1 + height * width, dim) position embedding of a `grid`: zeros for the class token, then by rows.

    Each quarter of `dim` holds one of: sine of the row, cosine of the row, sine of the column, cosine of the column, at
    wavelengths from 2 pi to 10000 * 2 pi. The order is that of the official code (moco-v3/vits.py); MAE's has columns
    first.
    """
    if dim % 4:
        raise ValueError(f"model.arch: a width of {dim} does not split into sines and cosines of two coordinates")
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))  # (dim / 4,)
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")  # (height, width) each
    angles = [place.flatten()[:, None] * frequencies for place in (rows, columns)]  # (height * width, dim / 4) each
    places = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)  # (..., dim)
    return torch.cat([torch.zeros(1, dim, dtype=places.dtype), places])[None]  # (1, 1 + height * width, dim)


def _require_vit(vit: nn.Module, setting: str) -> Any:
    if not all(hasattr(vit, part) for part in ("patch_embed", "pos_embed", "cls_token", "embed_dim")):
        raise ValueError(f"{setting}: the backbone is no ViT with a class token; choose model.arch=vit_... or leave it")
    return cast(Any, vit)
