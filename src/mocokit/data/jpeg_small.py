"""A JPEG at 1/4 or 1/8 of its size, without reading most of it.

Of a block of 8x8 pixels that becomes one, two or four pixels a side, as many coefficients a side are needed, the lowest
frequencies. The others only have to be passed over, for which jpeg_codes.py has a table that goes over two or three at
a time. Blocks beside the part that is asked for are passed over but for their mean, and reading ends below it.
libjpeg-turbo reads every coefficient of every block, one by one.

Shapes: C components, R x K pixels of the smaller image.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from mocokit.data.compiled import compiled
from mocokit.data.jpeg_bits import MARGIN, Coded, read_units, strip_markers
from mocokit.data.jpeg_codes import Codes, codes_of
from mocokit.data.jpeg_layout import JpegLayout, read_layout

LEAST_FRACTION = 4
"""At 1/2 there is too little to pass over."""

LARGE_BYTES = 256_000
"""A file for which tables of its own pay."""

Box = tuple[int, int, int, int]
"""(top, left, bottom, right)"""

_i64, _i32, _f32, _u8 = np.int64, np.int32, np.float32, np.uint8
_PLACES = sorted(
    ((row, column) for row in range(8) for column in range(8)),
    key=lambda place: (sum(place), place[sum(place) % 2 == 0]),
)
"""(row, column) of each coefficient of a block in the order of the file, a zigzag."""

_NUMBERS = np.array([[_PLACES.index((row, column)) for column in range(4)] for row in range(4)])
NUM_KEPT = int(_NUMBERS.max()) + 1


def decode_small(raw: bytes, *, fraction: int, part: Box) -> NDArray[np.uint8] | None:
    """The RGB pixels (h, w, 3), not turned upright, at 1 / `fraction` (4 or 8) of the size, rounded up.

    Args:
        raw: The file.
        fraction: Divisor of both sides.
        part: What will be looked at, in pixels of the whole size. The rest is undefined.

    Returns:
        None when the file is no plain one, or damaged above the bottom of `part`.

    """
    layout = read_layout(raw)
    codes = codes_of(layout, worth_new=len(raw) >= LARGE_BYTES) if layout is not None else None
    if layout is None or codes is None:
        return None
    (height, width), (down, across), (top, left, bottom, right) = layout.unit_px, layout.num_units, part
    area = top // height, left // width, min(-(-bottom // height), down), min(-(-right // width), across)
    planes = _decode_planes(raw, layout, codes, area, fraction)
    return None if planes is None else _to_rgb(planes, layout, area, fraction)


def _decode_planes(raw: bytes, layout: JpegLayout, codes: Codes, area: Box, fraction: int) -> NDArray[np.uint8] | None:
    """The components (C, R, K) within `area`, in units; None where the file is damaged."""
    down, across = layout.num_units
    restart_units = layout.restart_units or down * across
    starts = np.zeros(-(-down * across // restart_units) + 1, np.int64)
    source = np.frombuffer(raw, np.uint8)[layout.data_start :]
    data = np.empty(len(source) + MARGIN, np.uint8)
    if strip_markers(source, data, starts) < len(starts) - 1:
        return None
    unit = np.array(layout.unit_px) // fraction
    blocks = np.array([(one.down, one.across) for one in layout.components])
    sides = unit // blocks
    steps = np.stack([one.quantization for one in layout.components])
    parts = np.repeat(np.arange(len(blocks)), blocks.prod(axis=1))
    kept = _NUMBERS[sides[:, 0] - 1, sides[:, 1] - 1]
    planes = np.empty((len(blocks), down * unit[0], across * unit[1]), np.uint8)
    coded = Coded(data, starts, restart_units, parts, codes)
    whole = _fill(planes, coded, (down, across), area, blocks, sides, kept, steps)
    return planes if whole else None


def _to_rgb(planes: NDArray[np.uint8], layout: JpegLayout, area: Box, fraction: int) -> NDArray[np.uint8]:
    """(C, R, K) -> (h, w, 3), within `area`."""
    height, width = -(-layout.height // fraction), -(-layout.width // fraction)
    down, across = (side // fraction for side in layout.unit_px)
    rows = slice(area[0] * down, min(area[2] * down, height))
    columns = slice(area[1] * across, min(area[3] * across, width))
    pixels, part = np.empty((height, width, 3), np.uint8), planes[:, rows, columns]
    if len(part) == 1:
        pixels[rows, columns] = part[0][:, :, None]
    else:
        brightness, blue, red = part
        pixels[rows, columns] = cv2.cvtColor(cv2.merge([brightness, red, blue]), cv2.COLOR_YCrCb2RGB)
    return pixels


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
    state, means = np.zeros(3, np.uint64), np.zeros(len(blocks), np.int32)
    coefficients = np.empty((units[1] * coded.parts.size, NUM_KEPT), np.int16)
    for row in range(area[2]):
        coefficients[:] = 0
        first, last = row * units[1], (row + 1) * units[1]
        wanted = (first + area[1], first + area[3]) if row >= area[0] else (0, 0)
        if not read_units(coded, (first, last), wanted, kept, state, means, coefficients):
            return False
        block = _i64(0)
        for part in range(len(blocks) if row >= area[0] else 0):
            _write_row(
                planes[part], row, (area[1], area[3]), coefficients, block, coded.parts.size, blocks[part], sides[part],
                steps[part],
            )  # fmt: skip
            block += blocks[part, 0] * blocks[part, 1]
    return True


@compiled
def _write_row(
    plane: NDArray[np.uint8],
    row: int,
    wanted: tuple[int, int],
    coefficients: NDArray[np.int16],
    first: np.int64,
    stride: int,
    blocks: NDArray[np.int64],
    sides: NDArray[np.int64],
    steps: NDArray[np.int32],
) -> None:
    """Fill the pixels (R, K) of a component that belong to the units `wanted` of a row.

    Args:
        plane: Where they go.
        row: Number of the row of units.
        wanted: The first unit, and the one behind the last.
        coefficients: (units * stride, NUM_KEPT) of the whole row.
        first: The component's first block in a unit.
        stride: Blocks in a unit.
        blocks: (2,) the component's in a unit, down and across.
        sides: (2,) pixels that a block becomes.
        steps: (64,) what a coefficient of 1 means.

    """
    down, across = _cosines(sides[0]), _cosines(sides[1])
    half_done, levels = np.empty((4, 4), np.float32), np.empty((4, 4), np.float32)
    for column in range(wanted[0] * blocks[1], wanted[1] * blocks[1]):
        block, left = column // blocks[1] * stride + first + column % blocks[1], column * sides[1]
        for top in range(row * blocks[0] * sides[0], (row + 1) * blocks[0] * sides[0], sides[0]):
            mean, detail = _i32(_i32(coefficients[block, 0]) * steps[0]), np.int16(0)
            for place in range(1, NUM_KEPT):
                detail |= coefficients[block, place]
            if sides[0] == 2 and sides[1] == 2:
                right, below = coefficients[block, 1] * steps[1], coefficients[block, 2] * steps[2]
                _write_four(plane, top, left, mean, right, below, coefficients[block, 4] * steps[4])
            elif detail == 0 or sides[0] * sides[1] == 1:
                for n in range(sides[0]):
                    for m in range(sides[1]):
                        plane[top + n, left + m] = _level(mean)
            else:
                _transform(coefficients, block, steps, down, across, half_done, levels)
                for n in range(sides[0]):
                    for m in range(sides[1]):
                        plane[top + n, left + m] = _clipped(levels[n, m])
            block += blocks[1]


@compiled
def _write_four(
    plane: NDArray[np.uint8], top: int, left: int, mean: np.int32, across: np.int32, down: np.int32, both: np.int32
) -> None:
    """The inverse cosine transform of 2 x 2."""
    plane[top, left] = _level(mean + across + down + both)
    plane[top, left + 1] = _level(mean - across + down - both)
    plane[top + 1, left] = _level(mean + across - down - both)
    plane[top + 1, left + 1] = _level(mean - across - down + both)


@compiled
def _level(eighths: np.int32) -> np.uint8:
    """The pixel that is `eighths` of a level brighter than the middle, 128."""
    return _u8(min(max(int(eighths + 1028) >> 3, 0), 255))


@compiled
def _clipped(level: float) -> np.uint8:
    return _u8(min(max(level, 0.0), 255.0))


@compiled
def _cosines(count: int) -> NDArray[np.float32]:
    """(4, 4) what coefficient u (row) adds to pixel n (column) of `count`; zeros beyond."""
    cosines = np.zeros((4, 4), np.float32)
    for u in range(count):
        for n in range(count):
            wave = math.cos((n + 0.5) * u * math.pi / count)
            cosines[u, n] = wave * math.sqrt((1.0 if u == 0 else 2.0) / 8.0)
    return cosines


@compiled
def _transform(
    coefficients: NDArray[np.int16],
    block: int,
    steps: NDArray[np.int32],
    down: NDArray[np.float32],
    across: NDArray[np.float32],
    half_done: NDArray[np.float32],
    levels: NDArray[np.float32],
) -> None:
    """Fill `levels` (4, 4) by the inverse cosine transform of 4 x 4 or, by the cosines given, of less."""
    half_done[:], levels[:] = _f32(0), _f32(128.5)  # a half for rounding
    for u in range(4):
        for v in range(4):
            place = _NUMBERS[u, v]
            value = _f32(_i32(_i32(coefficients[block, place]) * steps[place]))
            for m in range(4):
                half_done[u, m] += value * across[v, m]
    for u in range(4):
        for n in range(4):
            for m in range(4):
                levels[n, m] += down[u, n] * half_done[u, m]
