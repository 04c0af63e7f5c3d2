"""A JPEG at 1/4 or 1/8 of its size, without reading most of it.

Of a block of 8x8 pixels that becomes one, two or four pixels a side, as many coefficients a side are needed, the lowest
frequencies. The others only have to be passed over, for which jpeg_codes.py has a table that goes over two or three at
a time. Blocks beside the part that is asked for are passed over but for their mean, and reading ends below it.
libjpeg-turbo reads every coefficient of every block, one by one.

Shapes: C components, R x K pixels of the smaller image.
"""

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mocokit.data.augment.machine_code import compiled
from mocokit.data.jpeg_bits import Coded, read_units, strip_file
from mocokit.data.jpeg_codes import Codes, codes_of
from mocokit.data.jpeg_layout import Component, JpegLayout

LEAST_FRACTION = 4
"""At 1/2 there is too little to pass over."""

Box = tuple[int, int, int, int]
"""(top, left, bottom, right)"""

_i64 = np.int64
_i32 = np.int32
_u32 = np.uint32
_u16 = np.uint16
_f32 = np.float32
_u8 = np.uint8
_PLACES = sorted(
    ((row, column) for row in range(8) for column in range(8)),
    key=lambda place: (sum(place), place[sum(place) % 2 == 0]),
)
"""(row, column) of each coefficient of a block in the order of the file, a zigzag."""

_NUMBERS = np.array([[_PLACES.index((row, column)) for column in range(4)] for row in range(4)])
NUM_KEPT = int(_NUMBERS.max()) + 1


def decode_small(raw: bytes, layout: JpegLayout, *, fraction: int, part: Box) -> NDArray[np.uint8] | None:
    """The RGB pixels (h, w, 3), not turned upright, at 1 / `fraction` (4 or 8) of the size, rounded up.

    Args:
        raw: The file.
        layout: Of this file.
        fraction: Divisor of both sides.
        part: What will be looked at, in pixels of the whole size. The rest is undefined.

    Returns:
        None when it is damaged above the bottom of `part`, or its codes are no codes.

    """
    codes = codes_of(layout)
    if codes is None:
        return None
    (height, width) = layout.unit_px
    (down, across) = layout.num_units
    (top, left, bottom, right) = part
    area = top // height, left // width, min(-(-bottom // height), down), min(-(-right // width), across)
    planes = _decode_planes(raw, layout, codes, area, fraction)
    return None if planes is None else _to_rgb(planes, layout, area, fraction)


def _decode_planes(raw: bytes, layout: JpegLayout, codes: Codes, area: Box, fraction: int) -> NDArray[np.uint8] | None:
    """The components (C, R, K) within `area`, in units; None where the file is damaged."""
    down, across = layout.num_units
    plan = _plan(layout.components, layout.unit_px, across, fraction)
    if (stripped := strip_file(raw, layout)) is None:
        return None
    height, width = (side // fraction for side in layout.unit_px)
    planes = np.empty((len(layout.components), down * height, across * width), np.uint8)
    coded = Coded(*stripped, plan.parts, plan.places, codes)
    whole = _fill(planes, coded, (down, across), area, plan.blocks, plan.sides, plan.kept, plan.steps)
    return planes if whole else None


class _Plan(NamedTuple):
    """What is the same for all pictures of a width and an encoder; see `_fill` and `Coded`."""

    blocks: NDArray[np.int64]
    sides: NDArray[np.int64]
    kept: NDArray[np.int64]
    steps: NDArray[np.int32]
    parts: NDArray[np.uint64]
    places: NDArray[np.uint64]


@functools.lru_cache(maxsize=256)
def _plan(components: tuple[Component, ...], unit_px: tuple[int, int], across: int, fraction: int) -> _Plan:
    blocks = np.array([(one.down, one.across) for one in components])
    sides = np.array(unit_px) // fraction // blocks
    steps = np.array([np.frombuffer(one.quantization, ">u2") for one in components], np.int32)
    return _Plan(blocks, sides, _NUMBERS[sides[:, 0] - 1, sides[:, 1] - 1], steps, *_arrangement(components, across))


def _arrangement(components: tuple[Component, ...], across: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """`Coded.parts` and `Coded.places` that lay each row of a component's blocks out in one piece."""
    parts = list[int]()
    places = list[tuple[int, int]]()
    start = 0
    for number, component in enumerate(components):
        for _ in range(component.down):
            parts += [number] * component.across
            places += [(start + x, component.across) for x in range(component.across)]
            start += component.across * across
    return np.array(parts, np.uint64), np.array(places, np.uint64)


def _to_rgb(planes: NDArray[np.uint8], layout: JpegLayout, area: Box, fraction: int) -> NDArray[np.uint8]:
    """(C, R, K) -> (h, w, 3), within `area`."""
    height = -(-layout.height // fraction)
    width = -(-layout.width // fraction)
    down, across = (side // fraction for side in layout.unit_px)
    rows = slice(area[0] * down, min(area[2] * down, height))
    columns = slice(area[1] * across, min(area[3] * across, width))
    pixels = np.empty((height, width, 3), np.uint8)
    part = planes[:, rows, columns]
    if len(part) == 1:
        pixels[rows, columns] = part[0][:, :, None]
    else:
        rgb = np.empty(part.shape, np.uint8)
        _to_rgb_planes(planes, (rows.start, columns.start), rgb)
        cv2.merge(list(rgb), dst=pixels[rows, columns])
    return pixels


@compiled
def _to_rgb_planes(planes: NDArray[np.uint8], corner: tuple[int, int], rgb: NDArray[np.uint8]) -> None:
    """Red, green and blue (3, r, k) of brightness, blueness and redness from `corner` on (ITU-T T.871)."""
    for row in range(rgb.shape[1]):
        y = planes[0, corner[0] + row]
        blue = planes[1, corner[0] + row]
        red = planes[2, corner[0] + row]
        y = y[corner[1] :]
        blue = blue[corner[1] :]
        red = red[corner[1] :]
        line = rgb[0, row]
        for x in range(line.size):
            line[x] = _from_fixed(_i32(_to_fixed(y[x]) + _i32(91881 * _i32(_i32(red[x]) - _i32(128)))))
        line = rgb[1, row]
        for x in range(line.size):
            less = _i32(22554 * _i32(_i32(blue[x]) - _i32(128))) + _i32(46802 * _i32(_i32(red[x]) - _i32(128)))
            line[x] = _from_fixed(_i32(_to_fixed(y[x]) - _i32(less)))
        line = rgb[2, row]
        for x in range(line.size):
            line[x] = _from_fixed(_i32(_to_fixed(y[x]) + _i32(116130 * _i32(_i32(blue[x]) - _i32(128)))))


@compiled
def _to_fixed(level: np.uint8) -> np.int32:
    """16-bit fixed point, and a half for rounding."""
    return _i32((_i32(level) << _i32(16)) + _i32(1 << 15))


@compiled
def _from_fixed(fixed: np.int32) -> np.uint8:
    """Cut off to 0..255."""
    return _u8(min(max(_i32(fixed >> _i32(16)), _i32(0)), _i32(255)))


@compiled
def _fill(
    planes: NDArray[np.uint8],
    coded: Coded,
    units: tuple[int, int],
    area: Box,
    blocks: NDArray[np.int64],
    sides: NDArray[np.int64],
    kept: NDArray[np.int64],
    steps: NDArray[np.int32],
) -> bool:
    """Fill `planes` (C, R, K) within `area`; False where the coded data are damaged or end too early.

    Args:
        planes: Where pixels go.
        coded: What to read.
        units: Of the picture, (down, across).
        area: Those that are wanted.
        blocks: (C, 2) of a unit.
        sides: (C, 2) pixels that one becomes.
        kept: (C,) last coefficient that this needs, in the order of the file.
        steps: (C, 64) what a coefficient of 1 means.

    """
    state = np.zeros(3 + len(blocks), np.uint64)
    coefficients = np.empty((NUM_KEPT + 1, coded.parts.size * units[1]), np.int16)
    halves = np.zeros((4, 4, blocks[:, 1].max() * units[1]), np.float32)
    for row in range(area[2]):
        coefficients[:] = 0
        first = row * units[1]
        last = (row + 1) * units[1]
        wanted = (first + area[1], first + area[3]) if row >= area[0] else (0, 0)
        if not read_units(coded, (first, last, *wanted), kept, state, coefficients):
            return False
        start = _i64(0)
        for part in range(len(blocks) if row >= area[0] else 0):
            for y in range(blocks[part, 0]):
                _write_blocks(
                    planes[part],
                    (row * blocks[part, 0] + y) * sides[part, 0],
                    sides[part],
                    coefficients,
                    start,
                    (area[1] * blocks[part, 1], area[3] * blocks[part, 1]),
                    steps[part],
                    halves,
                )
                start += blocks[part, 1] * units[1]
    return True


@compiled
def _write_blocks(
    plane: NDArray[np.uint8],
    top: int,
    sides: NDArray[np.int64],
    coefficients: NDArray[np.int16],
    start: np.int64,
    wanted: tuple[int, int],
    steps: NDArray[np.int32],
    halves: NDArray[np.float32],
) -> None:
    """Fill the pixels of a component that belong to a row of its blocks: the inverse cosine transform of each.

    Args:
        plane: (R, K) where they go.
        top: Their first row.
        sides: (2,) pixels that a block becomes, 4 at most.
        coefficients: (NUM_KEPT + 1, ...) of all blocks of the row of units. Those that aren't needed count nothing.
        start: The first of this row of blocks in them.
        wanted: The first block of the row that is wanted, and the one behind the last.
        steps: (64,) what a coefficient of 1 means.
        halves: (4, 4, ...) room for as many blocks, zeros at first.

    """
    count = wanted[1] - wanted[0]
    down = _waves(sides[0])
    across = _waves(sides[1])
    first = start + wanted[0]
    last = start + wanted[1]
    for u in range(sides[0]):
        n0, n1, n2, n3 = _NUMBERS[u]
        c0 = coefficients[n0, first:last]
        c1 = coefficients[n1, first:last]
        c2 = coefficients[n2, first:last]
        c3 = coefficients[n3, first:last]
        for m in range(sides[1]):
            half = halves[u, m]
            w0 = across[0, m] * _f32(steps[n0])
            w1 = across[1, m] * _f32(steps[n1])
            w2 = across[2, m] * _f32(steps[n2])
            w3 = across[3, m] * _f32(steps[n3])
            for block in range(count):
                half[block] = w0 * _f32(c0[block]) + w1 * _f32(c1[block]) + w2 * _f32(c2[block]) + w3 * _f32(c3[block])
    for n in range(sides[0]):
        waves = down[:, n].copy()
        line = plane[top + n, wanted[0] * sides[1] : wanted[1] * sides[1]]
        if sides[1] == 4:  # whole words, in the order of little-endian machines
            four = line.view(np.uint32)
            for block in range(count):
                low = _level(halves, 0, block, waves) | _level(halves, 1, block, waves) << _u32(8)
                high = _level(halves, 2, block, waves) | _level(halves, 3, block, waves) << _u32(8)
                four[block] = low | high << _u32(16)
        elif sides[1] == 2:
            two = line.view(np.uint16)
            for block in range(count):
                two[block] = _u16(_level(halves, 0, block, waves) | _level(halves, 1, block, waves) << _u32(8))
        else:
            for block in range(count):
                line[block] = _u8(_level(halves, 0, block, waves))


@compiled
def _level(halves: NDArray[np.float32], m: int, block: int, waves: NDArray[np.float32]) -> np.uint32:
    """A pixel: the frequencies of its column, mixed."""
    total = waves[0] * halves[0, m, block] + waves[1] * halves[1, m, block]
    total += waves[2] * halves[2, m, block] + waves[3] * halves[3, m, block]
    return _u32(min(max(total * _f32(0.125) + _f32(128.5), _f32(0)), _f32(255)))


@compiled
def _waves(count: int) -> NDArray[np.float32]:
    """(4, 4) what coefficient u (row) adds to pixel n (column) of `count`, in the unit of the mean."""
    waves = np.zeros((4, 4), np.float32)
    for u in range(count):
        for n in range(count):
            waves[u, n] = 1.0 if u == 0 else math.sqrt(2.0) * math.cos((n + 0.5) * u * math.pi / count)
    return waves
