"""The coded data of a JPEG as coefficients, of which those that nobody needs are passed over (ITU-T T.81, annex F).

Files are hostile: whatever their bits are, all that is looked up or written lies within its array.

Shapes: C components, B blocks of a unit.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mocokit.data.compiled import compiled, inlined
from mocokit.data.jpeg_codes import DAMAGED, END_OF_BLOCK, PASSED_BITS, TABLE_BITS, Codes, one_symbol

MARGIN = 1 << 13
"""Zero bytes behind the coded data: more than one unit takes, after each of which the end is looked for."""

_u64, _i64, _u8 = np.uint64, np.int64, np.uint8
_BEHIND, _BEHIND_PASSED = _u64(64 - TABLE_BITS), _u64(64 - PASSED_BITS)


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
    part, size, at, end, one, eight = 0, _u64(source.size), _u64(0), _u64(0), _u64(1), _u64(8)
    while part < starts.size - 1:
        while at + eight <= size and not _has_255(_word(source, at)):
            for offset in range(eight):
                target[end + offset] = source[at + offset]
            at, end = at + eight, end + eight
        value = source[at] if at < size else _u8(255)
        following = source[at + one] if at + one < size else _u8(0xD9)
        if value != 255 or following == 0:
            target[end] = value
            at, end = at + (one if value != 255 else _u64(2)), end + one
        elif following == 255:  # fill
            at += one
        else:
            part, at = part + 1, at + _u64(2)
            starts[part] = end
            if not 0xD0 <= following <= 0xD7:
                break
    target[end : end + _u64(MARGIN)] = 0
    return part


@compiled
def read_units(  # noqa: C901  (in parts, their calls would take as long as the work)
    coded: Coded,
    units: tuple[int, int],
    wanted: tuple[int, int],
    kept: NDArray[np.int64],
    state: NDArray[np.uint64],
    means: NDArray[np.int32],
    coefficients: NDArray[np.int16],
) -> bool:
    """Read some units in a row; False where the data are damaged or at their end.

    Args:
        coded: What to read.
        units: The first, and the one behind the last.
        wanted: The same of those of which more than means is wanted.
        kept: (C,) last coefficient that is wanted of a block, in the order of the file.
        state: (3,) bits read but not used, how many these are, byte behind them; kept between calls.
        means: (C,) of the last block of each component; kept between calls.
        coefficients: (NUM_KEPT, units * B) zeros, to be filled.

    """
    data, starts, restart_units, parts, places, codes = coded
    means_code, means_short, details_code, details_short, details_passed, of_component = codes
    bits, left, position = state[0], state[1], state[2]
    for unit in range(units[0], units[1]):
        if unit % restart_units == 0:
            bits, left, position = _u64(0), _u64(0), _u64(starts[unit // restart_units])
            means[:] = 0
        for number, part in enumerate(parts):
            code, block = of_component[part], places[number, 0] + _u64(unit - units[0]) * places[number, 1]
            bits, position, left = bits | _word(data, position) >> left, position + _fit(left), left | _u64(56)
            entry = means_short[code, bits >> _BEHIND] or one_symbol(means_code, code, bits, True)
            means[part] += entry >> 16
            coefficients[0, block] = means[part]
            bits, left = bits << _u64(entry & 255), left - _u64(entry & 255)
            at, last = (entry >> 8) & 255, kept[part] if wanted[0] <= unit < wanted[1] else 0
            while at <= last:
                if left < _u64(32):
                    bits, position, left = bits | _word(data, position) >> left, position + _fit(left), left | _u64(56)
                entry = details_short[code, bits >> _BEHIND] or one_symbol(details_code, code, bits, False)
                at += (entry >> 8) & 255
                if at <= last + 1:
                    coefficients[at - 1, block] = entry >> 16
                bits, left = bits << _u64(entry & 255), left - _u64(entry & 255)
            while at < 64:
                if left < _u64(32):
                    bits, position, left = bits | _word(data, position) >> left, position + _fit(left), left | _u64(56)
                entry = _i64(details_passed[code, bits >> _BEHIND_PASSED])
                following = at + (entry >> 8)
                if (following & 127) + (following >> 7) > 64:  # some are the next block's, or nothing fits the table
                    entry = one_symbol(details_code, code, bits, False)
                    following = at + ((entry >> 8) & 255)
                at = following
                bits, left = bits << _u64(entry & 255), left - _u64(entry & 255)
            if at != 64 and not END_OF_BLOCK <= at < DAMAGED:
                return False
        if _u64(8) * position - left > _u64(8 * starts[unit // restart_units + 1]):
            return False
    state[0], state[1], state[2] = bits, left, position
    return True


@inlined
def _fit(left: np.uint64) -> np.uint64:
    """Whole bytes that fit into 64 bits beside `left`."""
    return (_u64(63) - left) >> _u64(3)


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
def _has_255(word: np.uint64) -> bool:
    """Whether one of eight bytes is 255."""
    rest = ~word
    found: bool = ((rest - _u64(0x0101010101010101)) & word & _u64(0x8080808080808080)) != _u64(0)
    return found
