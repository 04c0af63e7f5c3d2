"""Brightness, contrast, saturation, hue and grayscale, bit for bit as torchvision applies them to Pillow images.

All work in place on planes (3, P) uint8: red, green and blue of P pixels. Each rounds as Pillow does, so that the
rounding between two operations is the reference's too.
"""

import numpy as np
from numpy.typing import NDArray

from mocokit.data.compiled import compiled

Planes = NDArray[np.uint8]

_f32, _f64, _i32, _u8 = np.float32, np.float64, np.int32, np.uint8


@compiled
def _luma(red: np.uint8, green: np.uint8, blue: np.uint8) -> np.int32:
    """ITU-R 601-2 in 16-bit fixed point: Pillow's mode "L"."""
    total = _i32(_i32(red) * 19595 + _i32(green) * 38470 + _i32(blue) * 7471 + 0x8000)
    return _i32(total >> _i32(16))  # each step cast back to 32 bits: numba widens to 64, which halves the speed


@compiled
def _blend(base: np.float32, value: np.uint8, factor: np.float32) -> np.uint8:
    """`Image.blend`: from `base` (factor 0) over `value` (1) and beyond, cut off to 0..255, rounded down."""
    return _u8(min(max(base + factor * (_f32(value) - base), _f32(0)), _f32(255)))


@compiled
def adjust_brightness(planes: Planes, factor: float) -> None:
    """Blend with black."""
    for plane in planes:
        for pixel in range(plane.size):
            plane[pixel] = _blend(_f32(0), plane[pixel], _f32(factor))


@compiled
def adjust_contrast(planes: Planes, factor: float) -> None:
    """Blend with the image's mean gray."""
    red, green, blue = planes[0], planes[1], planes[2]
    total = np.int64(0)
    for pixel in range(red.size):
        total += _luma(red[pixel], green[pixel], blue[pixel])
    gray = _f32(int(total / red.size + 0.5))
    for plane in planes:
        for pixel in range(plane.size):
            plane[pixel] = _blend(gray, plane[pixel], _f32(factor))


@compiled
def adjust_saturation(planes: Planes, factor: float) -> None:
    """Blend with the grayscale image."""
    red, green, blue = planes[0], planes[1], planes[2]
    for pixel in range(red.size):
        gray = _f32(_luma(red[pixel], green[pixel], blue[pixel]))
        red[pixel] = _blend(gray, red[pixel], _f32(factor))
        green[pixel] = _blend(gray, green[pixel], _f32(factor))
        blue[pixel] = _blend(gray, blue[pixel], _f32(factor))


@compiled
def to_grayscale(planes: Planes) -> None:
    """Replace each colour by its gray."""
    red, green, blue = planes[0], planes[1], planes[2]
    for pixel in range(red.size):
        gray = _u8(_luma(red[pixel], green[pixel], blue[pixel]))
        red[pixel], green[pixel], blue[pixel] = gray, gray, gray


@compiled
def shift_hue(planes: Planes, shift: int) -> None:
    """Through Pillow's 8-bit HSV: hue + `shift` in 256ths of the circle, modulo 256.

    In single precision, which gives Pillow's own result for each of the 2**24 colours (a test goes through all).
    Without a branch, so that it becomes vector code.
    """
    red, green, blue = planes[0], planes[1], planes[2]
    for pixel in range(red.size):
        r, g, b = _i32(red[pixel]), _i32(green[pixel]), _i32(blue[pixel])
        high, lowest = max(max(r, g), b), min(min(r, g), b)  # noqa: PLW3301, numba takes two at a time
        saturation = _i32(_f32(_i32(high - lowest)) / _f32(max(high, _i32(1))) * _f32(255))
        hue = _hue(r, g, b, high, lowest)

        six = _i32(_i32(_i32(hue + _i32(shift)) & _i32(255)) * _i32(6))
        sector = _i32(_i32(six * _i32(257) + _i32(257)) >> _i32(16))  # six // 255
        rest = _i32(six - _i32(sector * _i32(255)))
        low = _share(high, _i32(saturation * _i32(255)))
        down = _share(high, _i32(saturation * rest))
        up = _share(high, _i32(saturation * _i32(_i32(255) - rest)))
        red[pixel] = _u8(_of_sector(sector, high, down, low, up))
        green[pixel] = _u8(_of_sector(_i32(sector + _i32(4)), high, down, low, up))
        blue[pixel] = _u8(_of_sector(_i32(sector + _i32(2)), high, down, low, up))


@compiled
def _hue(r: np.int32, g: np.int32, b: np.int32, high: np.int32, lowest: np.int32) -> np.int32:
    """Hue of a colour in 255ths of the circle, 0 for gray."""
    middle = _i32(_i32(_i32(r + g) + b) - _i32(high + lowest))
    chroma = _i32(high - lowest)
    part = _f32(_i32(high - middle)) / _f32(max(chroma, _i32(1)))
    falling = g >= b if r == high else (b > r if g == high else r > g)  # sixths in which `part` falls
    start = _f32(0) if r == high else (_f32(2) if g == high else _f32(4))  # sixth of the pure colour
    sixth = start + _f32(1) - part if falling else start - _f32(1) + part
    turn = sixth / _f32(6)
    turn = turn + _f32(1) if turn < _f32(0) else turn
    return min(_i32(turn * _f32(255)), _i32(255)) if chroma > 0 else _i32(0)


@compiled
def _of_sector(sector: np.int32, high: np.int32, down: np.int32, low: np.int32, up: np.int32) -> np.int32:
    """Red, where the circle starts; the other colours are a third and two thirds of the circle (6 sectors) behind."""
    part = _i32(sector - _i32(6)) if sector >= 6 else sector
    side = down if part == 1 else up
    return high if (part == 0) | (part == 5) else (low if (part == 2) | (part == 3) else side)


@compiled
def _share(value: np.int32, part: np.int32) -> np.int32:
    """`value` times 1 - part / 65025, rounded to nearest; the product fits single precision and is never a half."""
    return _i32(_f32(_i32(value * _i32(_i32(65025) - part))) * _f32(1 / 65025) + _f32(0.5))
