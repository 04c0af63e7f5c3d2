"""Picture of the view pairs of a batch, and their local crops, for a person to check the augmentation."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

MARGIN_PX = 4
MIN_SIDE_PX = 64


def save_view_sheet(
    path: Path, query: Tensor, key: Tensor, local: Tensor | None = None, *, num_pairs: int = 24, num_columns: int = 6
) -> None:
    """Write a PNG of up to `num_pairs` pairs: query, key, then the local crops, side by side.

    Args:
        path: PNG file to write.
        query: (N, 3, S, S) uint8.
        key: (N, 3, S, S) uint8.
        local: V local crops of each image, (N, V, 3, s, s) uint8, s <= S.
        num_pairs: Largest number of pairs.
        num_columns: Pairs a row.

    """
    views = [query, key]
    if local is not None:
        below = (0, 0, 0, query.shape[2] - local.shape[3])  # white below the crop, up to the height of a view
        views += [pad(crop, below, value=255) for crop in local.unbind(dim=1)]  # (N, 3, S, s)
    pairs = torch.cat([view[:num_pairs] for view in views], dim=3).permute(0, 2, 3, 1).numpy()  # (n, S, 2S + V s, 3)
    scale = -(-MIN_SIDE_PX // pairs.shape[1])  # enlarge small views to at least MIN_SIDE_PX
    pairs = pairs.repeat(scale, axis=1).repeat(scale, axis=2)
    height = pairs.shape[1] + MARGIN_PX
    width = pairs.shape[2] + MARGIN_PX
    num_rows = -(-len(pairs) // num_columns)
    sheet = np.full((num_rows * height + MARGIN_PX, num_columns * width + MARGIN_PX, 3), 255, np.uint8)
    for number, pair in enumerate(pairs):
        top = MARGIN_PX + number // num_columns * height
        left = MARGIN_PX + number % num_columns * width
        sheet[top : top + pair.shape[0], left : left + pair.shape[1]] = pair
    Image.fromarray(sheet).save(path)
