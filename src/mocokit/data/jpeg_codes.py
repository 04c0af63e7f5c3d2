"""Huffman codes of a JPEG as tables that the next bits of the file are looked up in (ITU-T T.81, annexes C and F).

An entry is `value << 16 | advance << 8 | length`: `length` bits belong to one symbol or more, which move on by
`advance` coefficients, the last one of which is `value`. An advance of END_OF_BLOCK or more says that the rest of the
block is zero, one of DAMAGED that the bits begin no symbol. One of two symbols has more on top: see `Codes.pairs`.
"""

import functools
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.augment.machine_code import compiled, inlined
from mocokit.data.jpeg_layout import JpegLayout, read_layout

MEAN_BITS = 10
PAIR_BITS = 11
PASSED_BITS = 14
"""Of the tables of one symbol, of two and of several: what stays in the first-level cache."""

LONGEST = 16
"""Bits of a code."""
END_OF_BLOCK = 128
DAMAGED = 192
NOWHERE = 64

_u64 = np.uint64
_i64 = np.int64
_i32 = np.int32
_Symbols = NDArray[np.uint16]
_Entries = NDArray[np.int32]
_Steps = NDArray[np.uint16]


class Codes(NamedTuple):
    """Tables of the D different codes of the components."""

    means: _Symbols
    """(D, 2**LONGEST) length << 8 | symbol, 0 for none, by the next bits: code of a block's mean."""
    means_short: _Entries
    """(D, 2**MEAN_BITS) entries of one mean, as the difference to the last one; 0: longer than that."""
    details: _Symbols
    """As `means`, code of the other coefficients."""
    pairs: NDArray[np.uint64]
    """(D, 2**PAIR_BITS) entries of one symbol or two: `second value << 48 | first value << 32 | second place << 24 |
    first place << 16 | advance << 8 | length`, places in coefficients from the present one; those of an end of block
    lie NOWHERE, a second one that is none is the first. DAMAGED: longer than that."""
    passed: _Steps
    """(D, 2**PASSED_BITS) entries of as many coefficients as fit, without a value; DAMAGED: longer than that."""
    of_component: NDArray[np.uint64]
    """(C,) which of them"""


Pair = tuple[bytes, bytes]
"""Codes of a component: of means and of other coefficients."""


def _pairs(layout: JpegLayout) -> tuple[Pair, ...]:
    return tuple((component.dc_codes, component.ac_codes) for component in layout.components)


@functools.cache
def _standard_pairs() -> frozenset[Pair]:
    """Those of ITU-T T.81, annex K, which Pillow writes as most others do."""
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    layout = read_layout(file.getvalue())
    return frozenset(_pairs(layout) if layout else ())


def has_standard_codes(layout: JpegLayout) -> bool:
    """Whether it has those, whose tables are made once for all files."""
    return _standard_pairs().issuperset(_pairs(layout))


def codes_of(layout: JpegLayout) -> Codes | None:
    """The tables, which take half a millisecond unless these codes were there before; None: no prefix code."""
    pairs = _pairs(layout)
    different = tuple(dict.fromkeys(pairs))
    tables = _tables(different)
    return None if tables is None else Codes(*tables, np.array([different.index(pair) for pair in pairs], np.uint64))


@functools.lru_cache(maxsize=16)
def _tables(pairs: tuple[Pair, ...]) -> tuple[_Symbols, _Entries, _Symbols, NDArray[np.uint64], _Steps] | None:
    try:
        means, details = (np.stack([_symbols(code) for code in kind]) for kind in zip(*pairs, strict=True))
    except ValueError:
        return None
    if (means & 255).max() > 15:
        return None
    return means, _short(means), details, _in_pairs(details), _passed(details)


def _symbols(code: bytes) -> _Symbols:
    """(2**LONGEST,); raises ValueError for what is no prefix code."""
    table = np.zeros(1 << LONGEST, np.uint16)
    start = 0
    symbols = iter(code[LONGEST:])
    for length, count in enumerate(code[:LONGEST], start=1):
        for _ in range(count):
            stop = start + (1 << (LONGEST - length))
            if stop > len(table):
                raise ValueError("no prefix code")
            table[start:stop] = length << 8 | next(symbols)
            start = stop
    return table


@inlined
def one_symbol(table: _Symbols, part: int, bits: np.uint64, is_mean: bool) -> np.int32:
    """Entry of the symbol that `bits` (the next one on top) begin with, by `Codes.means` or `Codes.details`."""
    found = _u64(table[part, bits >> _u64(64 - LONGEST)])
    length = found >> _u64(8)
    symbol = found & _u64(255)
    size, run = (symbol, _u64(0)) if is_mean else (symbol & _u64(15), symbol >> _u64(4))
    value = _i64(0)
    advance = _i64(run) + 1
    if length == _u64(0):
        advance = _i64(DAMAGED)
    elif size > _u64(0):
        value = _i64((bits << length) >> (_u64(64) - size))
        if value < _i64(1) << _i64(size - _u64(1)):  # the lower half stands for negative values
            value -= (_i64(1) << _i64(size)) - _i64(1)
    elif not is_mean and run < _u64(15):
        advance = _i64(END_OF_BLOCK)
    return _i32((value << 16) | (advance << 8) | _i64(length + size))


@compiled
def _short(tables: _Symbols) -> _Entries:
    short = np.zeros((len(tables), 1 << MEAN_BITS), np.int32)
    for part in range(len(tables)):
        for index in range(1 << MEAN_BITS):
            entry = one_symbol(tables, part, _u64(index) << _u64(64 - MEAN_BITS), True)
            if 0 < entry & 255 <= MEAN_BITS:
                short[part, index] = entry
    return short


@inlined
def as_pair(entry: np.int32) -> np.uint64:
    """A symbol's entry as one of `Codes.pairs`."""
    advance = _u64(entry >> 8) & _u64(255)
    value = _u64(entry >> 16) & _u64(0xFFFF)
    place = advance - _u64(1) if advance < _u64(END_OF_BLOCK) else _u64(NOWHERE)
    both = value << _u64(48) | value << _u64(32) | place << _u64(24) | place << _u64(16)
    return both | advance << _u64(8) | _u64(entry & 255)


@compiled
def _in_pairs(tables: _Symbols) -> NDArray[np.uint64]:
    pairs = np.empty((len(tables), 1 << PAIR_BITS), np.uint64)
    for part in range(len(tables)):
        for index in range(1 << PAIR_BITS):
            bits = _u64(index) << _u64(64 - PAIR_BITS)
            first = one_symbol(tables, part, bits, False)
            length = first & 255
            advance = (first >> 8) & 255
            pairs[part, index] = as_pair(first) if 0 < length <= PAIR_BITS else _u64(DAMAGED << 8)
            if advance >= END_OF_BLOCK or not 0 < length < PAIR_BITS:
                continue
            second = one_symbol(tables, part, bits << _u64(length), False)
            more = second & 255
            after = advance + ((second >> 8) & 255)
            if not 0 < more <= PAIR_BITS - length or not (after < 64 or END_OF_BLOCK <= after < DAMAGED):
                continue
            last = second if after < 64 else first
            place = _u64((after if after < 64 else advance) - 1)
            values = _u64(last >> 16) << _u64(48) | (_u64(first >> 16) & _u64(0xFFFF)) << _u64(32)
            places = place << _u64(24) | _u64(advance - 1) << _u64(16)
            pairs[part, index] = values | places | _u64(after << 8 | (length + more))
    return pairs


@compiled
def _passed(tables: _Symbols) -> _Steps:
    passed = np.empty((len(tables), 1 << PASSED_BITS), np.uint16)
    for part in range(len(tables)):
        for index in range(1 << PASSED_BITS):
            used = _i32(0)
            advance = _i32(0)
            while advance < END_OF_BLOCK and used < PASSED_BITS:
                entry = one_symbol(tables, part, _u64(index) << _u64(64 - PASSED_BITS + used), False)
                length = entry & 255
                step = (entry >> 8) & 255
                if length == 0 or used + length > PASSED_BITS or (step < END_OF_BLOCK and advance + step > 63):
                    break
                used = used + length
                advance = advance + step
            passed[part, index] = (advance << 8 | used) if used > 0 else DAMAGED << 8
    return passed
