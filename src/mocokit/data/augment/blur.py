"""Gaussian blur, bit-equal to Pillow's `GaussianBlur`: three box blurs along rows, then three along columns.

A box of fractional radius gives its two outermost pixels less weight (P. Gwosdek et al., "Theoretical Foundations of
Gaussian Convolution by Extended Box Filtering", 2011). Pixels outside the image have the value of the nearest edge
pixel: each pass works on a copy of the image with margins, and fills the margins first.
"""

import math

import numpy as np
from numpy.typing import NDArray

from mocokit.data.augment.machine_code import compiled

PASSES = 3
"""Number of box blurs along each direction."""

LANES = 4096
"""Bytes processed together. Their 16-bit sums, 8 KB, stay in the first-level cache."""

_f32 = np.float32
_u32 = np.uint32
_u16 = np.uint16
_u8 = np.uint8


@compiled
def box_radius(radius_px: float) -> np.float32:
    """Return the radius of the box whose PASSES-fold blur has a standard deviation of `radius_px` pixels."""
    variance = _f32(_f32(radius_px) * _f32(radius_px) / _f32(PASSES))
    length = _f32(math.sqrt(12.0 * variance + 1.0))
    whole = _f32(math.floor((length - 1.0) / 2.0))
    part = _f32((_f32(2) * whole + _f32(1)) * (whole * (whole + _f32(1)) - _f32(3) * variance))
    part = _f32(part / (_f32(6) * (variance - (whole + _f32(1)) * (whole + _f32(1)))))
    return _f32(whole + part)


def gaussian_blur(image: NDArray[np.uint8], radius_px: float) -> NDArray[np.uint8]:
    """Return `image` (H, W, C) blurred with a standard deviation of `radius_px` pixels."""
    box = box_radius(radius_px)
    edge = int(box) + 1
    height, width, channels = image.shape
    padded = np.empty((height + 2 * edge, width + 2 * edge, channels), np.uint8)  # each pass fills its own margins
    padded[edge:-edge, edge:-edge] = image
    blurred: NDArray[np.uint8] = _blur_padded(padded, box)[edge:-edge, edge:-edge]
    return blurred


@compiled
def _blur_padded(a: NDArray[np.uint8], box: np.float32) -> NDArray[np.uint8]:
    """Run all passes over `a`, an image with margins (H, W, C); the content of the margins does not matter."""
    height, width, channels = a.shape
    reach = int(box)
    edge = reach + 1
    inner = _u32(_f32(1 << 24) / _f32(_f32(2) * box + _f32(1)))  # weights in 24-bit fixed point, as in Pillow
    outer = _u32(((1 << 24) - (2 * reach + 1) * inner) // 2)
    b = np.empty_like(a)
    for _ in range(PASSES):  # along rows; the margins above and below are blurred too, and overwritten later
        for y in range(height):
            for margin in range(edge):
                for c in range(channels):
                    a[y, margin, c] = a[y, edge, c]
                    a[y, width - 1 - margin, c] = a[y, width - 1 - edge, c]
        _box_pass(a.ravel(), b.ravel(), channels, reach, inner, outer)
        a, b = b, a
    for _ in range(PASSES):  # along columns
        for margin in range(edge):
            a[margin] = a[edge]
            a[height - 1 - margin] = a[height - 1 - edge]
        _box_pass(a.ravel(), b.ravel(), width * channels, reach, inner, outer)
        a, b = b, a
    return a


@compiled
def _box_pass(
    source: NDArray[np.uint8],
    target: NDArray[np.uint8],
    stride: int,
    reach: int,
    inner: np.uint32,
    outer: np.uint32,
) -> None:
    """Box-blur bytes that are `stride` apart, except for the first and last (reach + 1) * stride bytes.

    Each output is `inner` times the 2 reach + 1 nearest inputs plus `outer` times the two inputs beyond them. Adding up
    shifted copies of flat memory is vector code; a running sum, as in Pillow, is not.
    """
    edge = (reach + 1) * stride
    total = np.empty(LANES, _u16)
    for start in range(0, source.size - 2 * edge, LANES):
        stop = min(start + LANES, source.size - 2 * edge)
        part = total[: stop - start]
        center = source[start + edge : stop + edge]
        for x in range(part.size):
            part[x] = center[x]
        for step in range(stride, edge, stride):
            before = source[start + step : stop + step]
            after = source[start + 2 * edge - step :]
            for x in range(part.size):
                part[x] += _u16(before[x]) + _u16(after[x])
        before = source[start:stop]
        after = source[start + 2 * edge :]
        out = target[start + edge :]
        for x in range(part.size):
            edges = _u32(_u32(before[x]) + _u32(after[x]))
            out[x] = _u8(_u32(_u32(part[x]) * inner + edges * outer + _u32(1 << 23)) >> _u32(24))
