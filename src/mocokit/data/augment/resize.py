"""Crop and resize, antialiased where it shrinks: bit for bit Pillow's bilinear or bicubic `resize`.

The bilinear one is about six times as fast.

Pillow resizes along each row, then along each column (or the other way round), and rounds in between. Both are here
the same loop over whole rows, which compilers turn into vector code, with a transpose around one of them.

Shapes: H x W image, h x w crop, S side of the view, T taps a weight row.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from mocokit.data.augment.machine_code import compiled

WEIGHT_BITS = 22
"""Fixed-point weights, as Pillow's: 8 bits of pixel and 22 of weight fit 32 bits with room for a sum."""

Weights = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
"""(weights (num_out, T), first input row, number of input rows)"""


def resized_crop(
    image: NDArray[np.uint8],
    crop: tuple[float, float, float, float],
    target: NDArray[np.uint8],
    *,
    bicubic: bool = False,
    mirrored: bool = False,
) -> None:
    """Fill `target` (S, S, 3), which lies in one piece, with a crop of `image` (H, W, 3).

    Args:
        image: The pixels.
        crop: (top, left, height, width), which may begin and end between pixels.
        target: Where it goes.
        bicubic: The filter; otherwise bilinear.
        mirrored: Left becomes right.

    Raises:
        ValueError: `target` lies in pieces.

    """
    if not target.flags.c_contiguous:  # reshaped below, it would be a copy
        raise ValueError(f"target={target.shape} with strides {target.strides}: must lie in one piece")
    top, left, height, width = crop
    first_row = math.floor(top)
    first_column = math.floor(left)
    last_row = math.ceil(top + height)
    last_column = math.ceil(left + width)
    part = image[first_row:last_row, first_column:last_column]  # (h, w, 3)
    size_px = len(target)
    rows = filter_weights(part.shape[0], float(top - first_row), float(height), size_px, bicubic, False)
    columns = filter_weights(part.shape[1], float(left - first_column), float(width), size_px, bicubic, mirrored)
    if height - size_px > max(0, 2 * (width - size_px)):  # tall: Pillow 13 resizes the columns first
        short = _transposed(_resize_columns(np.ascontiguousarray(part), rows))  # (w, S, 3)
        cv2.transpose(_resize_columns(short, columns), dst=target)
    else:
        narrow = _transposed(_resize_columns(_transposed(part), columns))  # (h, S, 3)
        resize_rows(narrow.reshape(len(narrow), -1), target.reshape(size_px, -1), *rows)


def _transposed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    swapped: NDArray[np.uint8] = np.asarray(cv2.transpose(image), np.uint8)  # a tenth of numpy's time
    return swapped


def _resize_columns(image: NDArray[np.uint8], weights: Weights) -> NDArray[np.uint8]:
    """(h, w, 3) -> (num_out, w, 3)"""
    resized = np.empty((len(weights[0]), *image.shape[1:]), np.uint8)
    resize_rows(image.reshape(len(image), -1), resized.reshape(len(resized), -1), *weights)
    return resized


@compiled
def filter_weights(num_in: int, start: float, length: float, num_out: int, bicubic: bool, mirrored: bool) -> Weights:
    """A filter that widens as it shrinks; `mirrored`: the last row is the first."""
    scale = length / num_out
    widening = max(scale, 1.0)
    support = 2.0 * widening if bicubic else widening
    weights = np.zeros((num_out, 2 * math.ceil(support) + 1), np.int32)
    first = np.empty(num_out, np.int32)
    count = np.empty(num_out, np.int32)
    row = np.empty(weights.shape[1], np.float64)
    for out in range(num_out):
        center = start + (out + 0.5) * scale
        place = num_out - 1 - out if mirrored else out
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), num_in)
        total = 0.0
        for tap in range(high - low):
            distance = abs(tap + low - center + 0.5)
            row[tap] = _cubic(distance * (1.0 / widening)) if bicubic else max(0.0, 1.0 - distance / widening)
            total += row[tap]
        for tap in range(high - low):
            weight = row[tap] / total
            weights[place, tap] = int(weight * (1 << WEIGHT_BITS) + (0.5 if weight >= 0.0 else -0.5))
        first[place] = low
        count[place] = high - low
    return weights, first, count


@compiled
def _cubic(x: float) -> float:
    """Keys' cubic with a = -1/2, which has negative lobes, at a distance of x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return near if x < 1.0 else (far if x < 2.0 else 0.0)


@compiled
def resize_rows(
    source: NDArray[np.uint8],
    target: NDArray[np.uint8],
    weights: NDArray[np.int32],
    first: NDArray[np.int32],
    count: NDArray[np.int32],
) -> None:
    """Fill each row of `target` (num_out, L) with a weighted sum of rows of `source` (num_in, L)."""
    lanes = source.shape[1]
    total = np.empty(lanes, np.int32)
    half = np.int32(1 << (WEIGHT_BITS - 1))  # rounds to nearest
    for out in range(target.shape[0]):
        weight = weights[out, 0]
        row = source[first[out]]
        for lane in range(lanes):
            total[lane] = half + np.int32(row[lane]) * weight
        for tap in range(1, count[out]):
            weight = weights[out, tap]
            row = source[first[out] + tap]
            for lane in range(lanes):
                total[lane] += np.int32(row[lane]) * weight
        line = target[out]
        for lane in range(lanes):
            line[lane] = np.uint8(min(max(total[lane] >> WEIGHT_BITS, 0), 255))  # bicubic weights overshoot
