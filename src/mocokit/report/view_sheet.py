"""A picture of what the network is asked to match: the first batch's view pairs."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

MARGIN_PX = 4
MIN_SIDE_PX = 64


def save_view_sheet(path: Path, query: Tensor, key: Tensor, *, num_pairs: int = 24, num_columns: int = 6) -> None:
    """Write a PNG of up to `num_pairs` pairs, query left and key right.

    Args:
        path: PNG file to write.
        query: (N, 3, S, S) uint8.
        key: (N, 3, S, S) uint8.
        num_pairs: Pairs to show.
        num_columns: Pairs in a row.

    """
    pairs = np.concatenate([query[:num_pairs].numpy(), key[:num_pairs].numpy()], axis=3)  # (n, 3, S, 2S)
    pairs = pairs.transpose(0, 2, 3, 1)
    scale = -(-MIN_SIDE_PX // pairs.shape[1])  # small views are enlarged so that a person sees them
    pairs = pairs.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = pairs.shape[1] + MARGIN_PX, pairs.shape[2] + MARGIN_PX
    num_rows = -(-len(pairs) // num_columns)
    sheet = np.full((num_rows * height + MARGIN_PX, num_columns * width + MARGIN_PX, 3), 255, np.uint8)
    for number, pair in enumerate(pairs):
        top, left = MARGIN_PX + number // num_columns * height, MARGIN_PX + number % num_columns * width
        sheet[top : top + pair.shape[0], left : left + pair.shape[1]] = pair
    Image.fromarray(sheet).save(path)
