"""Combinatorial patches (Fast-MoCo, Ci et al. 2022, arXiv:2207.08220): one view makes several queries for little more.

A view is cut into a grid of patches; the backbone reads each on its own; every choice of some of an image's patches
gives a query, which embeds the mean of their features. A 2 x 2 grid by two makes 6 queries out of the pixels of one.

Shapes: N images, g patches a side, c of them in a combination, P = C(g * g, c) combinations, D features.
"""

import itertools
import math

import torch
from torch import Tensor, nn


class CombinedPatches(nn.Module):
    """A backbone's features of all combinations of an image's patches.

    Args:
        grid: g.
        combined: c.

    """

    def __init__(self, grid: int, combined: int) -> None:
        super().__init__()
        self.grid = grid
        self.choices = list(itertools.combinations(range(grid * grid), combined))
        """P choices of c patches."""

    def forward(self, backbone: nn.Module, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N * P, D), those of an image in a row."""
        features: Tensor = backbone(cut(images, self.grid))  # (N * g * g, D)
        by_image = features.unflatten(0, (len(images), -1))  # (N, g * g, D)
        return torch.stack([by_image[:, choice].mean(dim=1) for choice in self.choices], dim=1).flatten(0, 1)


def cut(images: Tensor, grid: int) -> Tensor:
    """(N, 3, H, W) -> (N * g * g, 3, H / g, W / g) patches, those of an image in a row, each line of them after the
    other.
    """
    height, width = (side // grid for side in images.shape[2:])
    lines = images.unflatten(3, (grid, width)).unflatten(2, (grid, height))  # (N, 3, g, H / g, g, W / g)
    patches = lines.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    kept = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    rows: Tensor = patches.contiguous(memory_format=kept)
    return rows


def require_patches(grid: int, combined: int, image_size: int) -> None:
    """Raise ValueError when views of `image_size` pixels can't be cut and combined so."""
    if image_size % grid:
        raise ValueError(f"method.patch_grid={grid}: does not divide data.image_size={image_size}")
    if not 1 <= combined <= grid * grid:
        raise ValueError(f"method.patches_combined={combined}: must be 1 to {grid * grid}, the number of patches")
    if (queries := math.comb(grid * grid, combined)) > 100:
        raise ValueError(f"method.patch_grid={grid}: makes {queries} queries of a view; 2 makes 6, as in the paper")
