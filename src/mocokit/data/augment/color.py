"""Brightness, contrast, saturation, hue, grayscale and solarize, bit-equal to torchvision on Pillow images.

Most operations work in place on planes (3, P) uint8: red, green and blue of P pixels. Separate planes let the compiler
produce vector code. Each operation rounds to 8 bits as Pillow does, so a sequence of them rounds like the reference's.

The many casts to 32 bits keep the vector code: numba widens the result of each operation to 64 bits, which halves the
speed and moves roundings.
"""

import numpy as np
from numpy.typing import NDArray

from mocokit.data.augment.machine_code import compiled
from mocokit.data.augment.recipes import SOLARIZE_FROM

Planes = NDArray[np.uint8]

_f32 = np.float32
_f64 = np.float64
_i32 = np.int32
_u8 = np.uint8


@compiled
def _luma(red: np.uint8, green: np.uint8, blue: np.uint8) -> np.int32:
    """Return the brightness (ITU-R 601-2, 16-bit fixed point), as in Pillow's mode "L"."""
    total = _i32(_i32(red) * 19595 + _i32(green) * 38470 + _i32(blue) * 7471 + 0x8000)
    return _i32(total >> _i32(16))


@compiled
def _blend(base: np.float32, value: np.uint8, factor: np.float32) -> np.uint8:
    """Interpolate from `base` (factor 0) to `value` (factor 1) or beyond; clip to 0..255 and round down.

    The same as Pillow's `Image.blend`.
    """
    return _u8(min(max(base + factor * (_f32(value) - base), _f32(0)), _f32(255)))


@compiled
def adjust_brightness(planes: Planes, factor: float) -> None:
    """Blend each pixel with black."""
    for plane in planes:
        for pixel in range(plane.size):
            plane[pixel] = _blend(_f32(0), plane[pixel], _f32(factor))


@compiled
def adjust_contrast(planes: Planes, factor: float) -> None:
    """Blend each pixel with the mean gray of the image."""
    red = planes[0]
    green = planes[1]
    blue = planes[2]
    total = np.int64(0)
    for pixel in range(red.size):
        total += _luma(red[pixel], green[pixel], blue[pixel])
    gray = _f32(int(total / red.size + 0.5))
    for plane in planes:
        for pixel in range(plane.size):
            plane[pixel] = _blend(gray, plane[pixel], _f32(factor))


@compiled
def adjust_saturation(planes: Planes, factor: float) -> None:
    """Blend each pixel with its own gray."""
    red = planes[0]
    green = planes[1]
    blue = planes[2]
    for pixel in range(red.size):
        gray = _f32(_luma(red[pixel], green[pixel], blue[pixel]))
        red[pixel] = _blend(gray, red[pixel], _f32(factor))
        green[pixel] = _blend(gray, green[pixel], _f32(factor))
        blue[pixel] = _blend(gray, blue[pixel], _f32(factor))


@compiled
def to_grayscale(planes: Planes) -> None:
    """Replace each color by its gray."""
    red = planes[0]
    green = planes[1]
    blue = planes[2]
    for pixel in range(red.size):
        gray = _u8(_luma(red[pixel], green[pixel], blue[pixel]))
        red[pixel] = gray
        green[pixel] = gray
        blue[pixel] = gray


@compiled
def shift_hue(planes: Planes, shift: int) -> None:
    """Add `shift` to the hue in Pillow's 8-bit HSV, in 256ths of the color circle, modulo 256.

    Single precision gives Pillow's result for each of the 2**24 colors; a test tries all of them. The loop has no
    branches, only selections, so the compiler produces vector code.
    """
    red = planes[0]
    green = planes[1]
    blue = planes[2]
    for pixel in range(red.size):
        r = _i32(red[pixel])
        g = _i32(green[pixel])
        b = _i32(blue[pixel])
        high = max(max(r, g), b)  # noqa: PLW3301, numba takes two at a time
        lowest = min(min(r, g), b)  # noqa: PLW3301, the same
        chroma = _i32(high - lowest)
        saturation = _i32(_f32(chroma) / _f32(max(high, _i32(1))) * _f32(255))
        hue = _hue(r, g, b, high, max(chroma, _i32(1)))
        place = _i32(_i32(_i32(hue + _i32(shift)) & _i32(255)) * _i32(6))  # 255 units per sixth of the circle

        depth = _f32(_i32(high * saturation)) * _f32(1 / 65025)
        red[pixel] = _channel(_i32(place + _i32(5 * 255)), _f32(high), depth)
        green[pixel] = _channel(_i32(place + _i32(3 * 255)), _f32(high), depth)
        blue[pixel] = _channel(_i32(place + _i32(255)), _f32(high), depth)


@compiled
def _hue(r: np.int32, g: np.int32, b: np.int32, high: np.int32, chroma: np.int32) -> np.int32:
    """Return the hue in 255ths of the color circle, rounded where Pillow rounds; `chroma` is 1 for gray.

    The hue is the angle of the strongest channel (red 0, green 2, blue 4 sixths) plus a signed part of a sixth.
    """
    ahead = _i32(g - b) if r == high else (_i32(b - r) if g == high else _i32(r - g))  # positive: past that angle
    sixth = _f32(0) if r == high else (_f32(2) if g == high else _f32(4))
    side = _f32(1) if ahead >= 0 else _f32(-1)
    rest = _f32(_i32(chroma - abs(ahead))) / _f32(chroma)
    turn = (sixth + side - side * rest) / _f32(6)
    return _i32((turn + _f32(1) if turn < _f32(0) else turn) * _f32(255))


@compiled
def _channel(place: np.int32, high: np.float32, depth: np.float32) -> np.uint8:
    """Return one channel's level, rounded to nearest: `high` minus `depth` times a trapezoid over `place` (0..1530)."""
    place = _i32(place - _i32(1530)) if place >= _i32(1530) else place
    share = min(max(min(place, _i32(_i32(1020) - place)), _i32(0)), _i32(255))
    return _u8(high + _f32(0.5) - depth * _f32(share))


@compiled
def recolor(
    view: NDArray[np.uint8],
    order: tuple[int, ...],
    factors: tuple[float, float, float, float],
    gray_first: bool,
    gray_last: bool,
) -> None:
    """Apply color jitter and grayscale in place to a contiguous view (S, S, 3).

    Args:
        view: The pixels.
        order: Order of brightness (0), contrast (1), saturation (2) and hue (3).
        factors: Their factors, indexed by these numbers. 1 changes nothing; for the hue, 0 changes nothing.
        gray_first: Convert to grayscale before the jitter.
        gray_last: Convert to grayscale after the jitter.

    """
    interleaved = view.ravel()
    planes = np.empty((3, interleaved.size // 3), np.uint8)
    red = planes[0]
    green = planes[1]
    blue = planes[2]
    for pixel in range(red.size):
        red[pixel] = interleaved[3 * pixel]
        green[pixel] = interleaved[3 * pixel + 1]
        blue[pixel] = interleaved[3 * pixel + 2]
    if gray_first:
        to_grayscale(planes)
    for number in order:
        if number == 0 and factors[0] != 1.0:
            adjust_brightness(planes, factors[0])
        elif number == 1 and factors[1] != 1.0:
            adjust_contrast(planes, factors[1])
        elif number == 2 and factors[2] != 1.0:
            adjust_saturation(planes, factors[2])
        elif number == 3 and factors[3] != 0.0:
            shift_hue(planes, int(factors[3] * 255) & 255)
    if gray_last:
        to_grayscale(planes)
    for pixel in range(red.size):
        interleaved[3 * pixel] = red[pixel]
        interleaved[3 * pixel + 1] = green[pixel]
        interleaved[3 * pixel + 2] = blue[pixel]


@compiled
def solarize(view: NDArray[np.uint8]) -> None:
    """Invert each level from SOLARIZE_FROM on, in place, in a contiguous array of any shape."""
    levels = view.ravel()
    for index in range(levels.size):
        levels[index] = levels[index] if levels[index] < SOLARIZE_FROM else _u8(255 - levels[index])
