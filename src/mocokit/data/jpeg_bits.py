"""The coded data of a JPEG as coefficients, of which those that nobody needs are passed over (ITU-T T.81, annex F).

Files are hostile: whatever their bits are, all that is looked up or written lies within its array.

Shapes: C components, B blocks of a unit.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mocokit.data.augment.machine_code import compiled, inlined
from mocokit.data.jpeg_codes import DAMAGED, END_OF_BLOCK, MEAN_BITS, PAIR_BITS, PASSED_BITS, Codes, as_pair, one_symbol
from mocokit.data.jpeg_layout import JpegLayout

MARGIN = 1 << 13
"""Zero bytes behind the coded data: more than one unit takes, after each of which the end is looked for."""

_u64 = np.uint64
_i16 = np.int16
_u8 = np.uint8
_BYTE = _u64(255)
_BEHIND_MEAN = _u64(64 - MEAN_BITS)
_BEHIND_PAIR = _u64(64 - PAIR_BITS)
_BEHIND_PASSED = _u64(64 - PASSED_BITS)


class Coded(NamedTuple):
    """The coded data of a picture."""

    data: NDArray[np.uint8]
    """As `strip_markers` leaves them."""
    starts: NDArray[np.int64]
    """(parts + 1,) where each part between two restarts begins, and where the last one ends."""
    restart_units: int
    """Units in a part."""
    parts: NDArray[np.uint64]
    """(B,) the component of each block of a unit."""
    places: NDArray[np.uint64]
    """(B, 2) place of the first unit's block among the coefficients of some units, and steps to the next unit's."""
    codes: Codes


Stripped = tuple[NDArray[np.uint8], NDArray[np.int64], int]
"""The first three of `Coded`."""


def strip_file(raw: bytes, layout: JpegLayout) -> Stripped | None:
    """The coded data of a file; None where parts of it are missing."""
    units = layout.num_units[0] * layout.num_units[1]
    restart_units = layout.restart_units or units
    starts = np.zeros(-(-units // restart_units) + 1, np.int64)
    source = np.frombuffer(raw, np.uint8)[layout.data_start :]
    data = np.empty(len(source) + MARGIN, np.uint8)
    if strip_markers(source, data, starts) < len(starts) - 1:
        return None
    return data, starts, restart_units


@compiled
def strip_markers(source: NDArray[np.uint8], target: NDArray[np.uint8], starts: NDArray[np.int64]) -> int:
    """Copy coded data without the zeros that keep a 255 from looking like a marker.

    Args:
        source: From the first coded byte to the end of the file.
        target: At least MARGIN bytes more; zeros behind what is copied.
        starts: (parts + 1,) becomes where each part between two restarts begins, and where the last one ends.

    Returns:
        The number of parts found, no more than asked for.

    """
    part = 0
    size = _u64(source.size)
    at = _u64(0)
    end = _u64(0)
    one = _u64(1)
    eight = _u64(8)
    while part < starts.size - 1:
        while at + eight <= size:
            for offset in range(eight):
                target[end + offset] = source[at + offset]
            before = _before_255(_little_endian(source, at))
            at = at + before
            end = end + before
            if before < eight:
                break
        value = source[at] if at < size else _u8(255)
        following = source[at + one] if at + one < size else _u8(0xD9)
        if value != 255 or following == 0:
            target[end] = value
            at = at + (one if value != 255 else _u64(2))
            end = end + one
        elif following == 255:  # fill
            at += one
        else:
            part = part + 1
            at = at + _u64(2)
            starts[part] = end
            if not 0xD0 <= following <= 0xD7:
                break
    target[end : end + _u64(MARGIN)] = 0
    return part


@compiled
def read_units(  # noqa: C901, PLR0912, PLR0915  (in parts, their calls would take as long as the work)
    coded: Coded,
    units: tuple[int, int, int, int],
    kept: NDArray[np.int64],
    state: NDArray[np.uint64],
    coefficients: NDArray[np.int16],
) -> bool:
    """Read some units in a row; False where the data are damaged or at their end.

    Args:
        coded: What to read.
        units: The first, and the one behind the last; then those of which more than means is wanted, likewise.
        kept: (C,) last coefficient that is wanted of a block, in the order of the file.
        state: (3 + C,) bits read but not used, how many, byte behind them, mean of each component's last block.
        coefficients: (last kept + 2, units * B or more) zeros, to be filled; the last row is rubbish.

    """
    data, starts, restart_units, parts, places, (means_code, means_short, details_code, pairs, passed, of_part) = coded
    bits = state[0]
    left = state[1]
    position = state[2]
    means = state[3:]
    unused = _u64(len(coefficients) - 1)
    for unit in range(units[0], units[1]):
        if unit % restart_units == 0:
            bits = _u64(0)
            left = _u64(0)
            position = _u64(starts[unit // restart_units])
            means[:] = 0
        for number, part in enumerate(parts):
            code = of_part[part]
            block = places[number, 0] + _u64(unit - units[0]) * places[number, 1]
            bits, left, position = _refilled(bits, left, position, data)
            mean = means_short[code, bits >> _BEHIND_MEAN] or one_symbol(means_code, code, bits, True)
            means[part] += _u64(mean >> 16)
            coefficients[0, block] = _i16(means[part])
            at = _u64(mean >> 8) & _BYTE
            bits = bits << _u64(mean & 255)
            left = left - _u64(mean & 255)
            end = _u64(kept[part] + 1 if units[2] <= unit < units[3] else 1)
            while at < end:
                bits, left, position = _refilled(bits, left, position, data)
                for _ in range(2):  # as many as these bits are enough for
                    entry = pairs[code, bits >> _BEHIND_PAIR]
                    following = at + ((entry >> _u64(8)) & _BYTE)
                    if _overshoots(following):
                        bits, left, position = _refilled(bits, left, position, data)
                        entry = as_pair(one_symbol(details_code, code, bits, False))
                        following = at + ((entry >> _u64(8)) & _BYTE)
                    coefficients[min(at + ((entry >> _u64(16)) & _BYTE), unused), block] = _i16(entry >> _u64(32))
                    coefficients[min(at + ((entry >> _u64(24)) & _BYTE), unused), block] = _i16(entry >> _u64(48))
                    at = following
                    bits = bits << (entry & _BYTE)
                    left = left - (entry & _BYTE)
                    if at >= end:
                        break
            while at < _u64(64):
                bits, left, position = _refilled(bits, left, position, data)
                for _ in range(2):  # as many as these bits are enough for
                    entry = _u64(passed[code, bits >> _BEHIND_PASSED])
                    following = at + (entry >> _u64(8))
                    if _overshoots(following):
                        bits, left, position = _refilled(bits, left, position, data)
                        entry = _u64(one_symbol(details_code, code, bits, False))
                        following = at + ((entry >> _u64(8)) & _BYTE)
                    at = following
                    bits = bits << (entry & _BYTE)
                    left = left - (entry & _BYTE)
                    if at >= _u64(64):
                        break
            if at != _u64(64) and not _u64(END_OF_BLOCK) <= at < _u64(DAMAGED):
                return False
        if _u64(8) * position - left > _u64(8 * starts[unit // restart_units + 1]):
            return False
    state[0] = bits
    state[1] = left
    state[2] = position
    return True


@inlined
def _overshoots(following: np.uint64) -> bool:
    """Whether of some symbols one is the next block's already, or the bits fit no entry."""
    return bool((following & _u64(127)) + (following >> _u64(7)) > _u64(64))


@inlined
def _refilled(
    bits: np.uint64, left: np.uint64, position: np.uint64, data: NDArray[np.uint8]
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """The same bits and, behind them, as many whole bytes as fit into 64 bits: 56 bits at least."""
    return bits | _word(data, position) >> left, left | _u64(56), position + ((_u64(63) - left) >> _u64(3))


@inlined
def _word(data: NDArray[np.uint8], at: np.uint64) -> np.uint64:
    """Eight bytes, the first one on top; written out, since compilers know this for a single load."""
    word = _u64(data[at]) << _u64(56)
    word |= _u64(data[at + _u64(1)]) << _u64(48)
    word |= _u64(data[at + _u64(2)]) << _u64(40)
    word |= _u64(data[at + _u64(3)]) << _u64(32)
    word |= _u64(data[at + _u64(4)]) << _u64(24)
    word |= _u64(data[at + _u64(5)]) << _u64(16)
    word |= _u64(data[at + _u64(6)]) << _u64(8)
    return word | _u64(data[at + _u64(7)])


@inlined
def _little_endian(data: NDArray[np.uint8], at: np.uint64) -> np.uint64:
    """Eight bytes, the first one at the bottom."""
    word = _u64(data[at]) | _u64(data[at + _u64(1)]) << _u64(8)
    word |= _u64(data[at + _u64(2)]) << _u64(16)
    word |= _u64(data[at + _u64(3)]) << _u64(24)
    word |= _u64(data[at + _u64(4)]) << _u64(32)
    word |= _u64(data[at + _u64(5)]) << _u64(40)
    word |= _u64(data[at + _u64(6)]) << _u64(48)
    return word | _u64(data[at + _u64(7)]) << _u64(56)


@compiled
def _before_255(word: np.uint64) -> np.uint64:
    """How many of eight bytes come before the first 255."""
    ones = _u64(0x0101010101010101)
    found = (~word - ones) & word & (ones << _u64(7))  # on top of the first 255, and perhaps of bytes behind it
    if found == _u64(0):  # nearly always, and so not worth the wait
        return _u64(8)
    lowest = found & (~found + _u64(1))
    return _u64((((lowest >> _u64(7)) - _u64(1)) & ones) * ones >> _u64(56))
