"""Combinatorial patches (Fast-MoCo, Ci et al. 2022, arXiv:2207.08220): several queries from one view.

A view is cut into a grid of patches, and the backbone embeds each patch by itself. Each combination of c patches gives
one query: the mean of their features. A 2 x 2 grid with c = 2 gives 6 queries, and the backbone reads no more pixels
than for one.

Shapes: N images of (3, H, W); g patches a side; c patches in a combination; P = C(g * g, c) combinations; D features.
"""

import itertools
import math

import torch
from torch import Tensor, nn


class CombinedPatches(nn.Module):
    """Features of all combinations of an image's patches.

    Args:
        grid: Patches a side, g.
        combined: Patches in a combination, c.

    """

    def __init__(self, grid: int, combined: int) -> None:
        super().__init__()
        self.grid = grid
        self.combinations = list(itertools.combinations(range(grid * grid), combined))
        """P tuples of c patch numbers."""

    def forward(self, backbone: nn.Module, images: Tensor) -> Tensor:
        """Return the features of all combinations: (N, 3, H, W) -> (N * P, D), an image's P rows side by side."""
        features: Tensor = backbone(cut(images, self.grid))  # (N * g * g, D)
        by_image = features.unflatten(0, (len(images), -1))  # (N, g * g, D)
        # P of (N, D) -> (N, P, D) -> (N * P, D)
        return torch.stack([by_image[:, patches].mean(dim=1) for patches in self.combinations], dim=1).flatten(0, 1)


def cut(images: Tensor, grid: int) -> Tensor:
    """Cut images into patches: (N, 3, H, W) -> (N * g * g, 3, H / g, W / g).

    An image's patches are consecutive, row by row of its grid. The memory format of `images` is kept.
    """
    height, width = (side // grid for side in images.shape[2:])
    cells = images.unflatten(3, (grid, width)).unflatten(2, (grid, height))  # (N, 3, g, H / g, g, W / g)
    patches = cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (N, g, g, 3, H / g, W / g) -> (N * g * g, 3, ...)
    kept = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    rows: Tensor = patches.contiguous(memory_format=kept)
    return rows


def require_patches(grid: int, combined: int, image_size: int) -> None:
    """Raise ValueError if views of `image_size` pixels can't be cut into this grid and combined so."""
    if image_size % grid:
        raise ValueError(f"method.patch_grid={grid}: does not divide data.image_size={image_size}")
    if not 1 <= combined <= grid * grid:
        raise ValueError(f"method.patches_combined={combined}: must be 1 to {grid * grid}, the number of patches")
    if (queries := math.comb(grid * grid, combined)) > 100:
        raise ValueError(f"method.patch_grid={grid}: makes {queries} queries of a view; 2 makes 6, as in the paper")
