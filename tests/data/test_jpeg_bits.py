"""strip_markers and read_units against the same done bit by bit."""

from collections.abc import Iterator
from itertools import count, pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from mocokit.data.jpeg_bits import MARGIN, Coded, read_units, strip_file, strip_markers
from mocokit.data.jpeg_codes import codes_of
from mocokit.data.jpeg_layout import JpegLayout, read_layout
from mocokit.data.jpeg_small import _arrangement
from tests.jpeg_files import ARRANGEMENTS, CODINGS, Options, jpeg_file


def _stripped(source: bytes, num_parts: int) -> tuple[int, list[bytes], bytes]:
    """Parts found, their bytes, and the margin."""
    target = np.full(len(source) + MARGIN, 7, np.uint8)
    starts = np.zeros(num_parts + 1, np.int64)
    found = strip_markers(np.frombuffer(source, np.uint8), target, starts)
    parts = [target[start:stop].tobytes() for start, stop in list(pairwise(starts))[:found]]
    return found, parts, target[starts[found] :][:MARGIN].tobytes()


@pytest.mark.parametrize("before", range(20))
@pytest.mark.parametrize("value", [0xFE, 0x7F, 0x80, 0x00])
def test_a_255_is_found_wherever_it_lies(before: int, value: int) -> None:
    body = bytes([value] * before)
    source = body + b"\xff\x00" + body + b"\xff\x00\xff\x00" + body + b"\xff\xd9" + b"\xff\x00" * 9
    assert _stripped(source, 1) == (1, [body + b"\xff" + body + b"\xff\xff" + body], bytes(MARGIN))


def test_parts_end_at_restarts_and_fill_bytes_count_nothing() -> None:
    source = b"abcdefghijk\xff\xff\xff\xd0lm\xff\x00\xff\xd1\xff\xd2nopqrstuvw\xff\xd9"
    assert _stripped(source, 4) == (4, [b"abcdefghijk", b"lm\xff", b"", b"nopqrstuvw"], bytes(MARGIN))
    assert _stripped(source, 9)[0] == 4
    assert _stripped(b"cut short", 1) == (1, [b"cut short"], bytes(MARGIN))


def _symbols(code: bytes) -> dict[str, int]:
    """What each string of zeros and ones stands for."""
    table = dict[str, int]()
    number = 0
    values = iter(code[16:])
    for length, how_many in enumerate(code[:16], start=1):
        for _ in range(how_many):
            table[f"{number:0{length}b}"] = next(values)
            number += 1
        number *= 2
    return table


def _next_symbol(bits: Iterator[str], table: dict[str, int]) -> int:
    seen = ""
    while seen not in table:
        seen += next(bits)
    return table[seen]


def _next_value(bits: Iterator[str], size: int) -> int:
    digits = "".join(next(bits) for _ in range(size))
    return 0 if not size else int(digits, 2) - ((1 << size) - 1 if digits[0] == "0" else 0)


def _blocks(raw: bytes, layout: JpegLayout) -> NDArray[np.int64]:
    """(units, blocks of a unit, 64) coefficients in the order of the file (ITU-T T.81, annex F)."""
    units = layout.num_units[0] * layout.num_units[1]
    in_restart = layout.restart_units or 10**9
    components = [(n, one) for n, one in enumerate(layout.components) for _ in range(one.down * one.across)]
    blocks = np.zeros((units, len(components), 64), np.int64)
    _, parts, _ = _stripped(raw[layout.data_start :], -(-units // in_restart))
    for unit in range(units):
        if unit % in_restart == 0:
            bits = iter("".join(f"{byte:08b}" for byte in parts[unit // in_restart]))
            means = [0, 0, 0]
        for block, (number, component) in zip(blocks[unit], components, strict=True):
            means[number] += _next_value(bits, _next_symbol(bits, _symbols(component.dc_codes)))
            block[0] = means[number]
            at = 1
            details = _symbols(component.ac_codes)
            while at < 64 and (symbol := _next_symbol(bits, details)) != 0:
                at += symbol >> 4
                block[at] = _next_value(bits, symbol & 15)
                at += 1
    return blocks


@pytest.mark.parametrize("last", [0, 4, 24, 63])
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_coefficients_are_those_of_a_reader_that_goes_bit_by_bit(
    arrangement: Options, coding: Options, last: int
) -> None:
    raw = jpeg_file(48, 64, **arrangement, **coding)
    layout = read_layout(raw)
    assert layout is not None
    codes = codes_of(layout)
    assert codes is not None
    wanted = _blocks(raw, layout)
    units, in_unit = wanted.shape[:2]
    stripped = strip_file(raw, layout)
    assert stripped is not None
    coded = Coded(*stripped, *_arrangement(layout.components, units), codes)
    state = np.zeros(3 + len(layout.components), np.uint64)
    kept = np.full(len(layout.components), last)
    coefficients = np.zeros((last + 2, units * in_unit), np.int16)
    first = units // 4
    behind = units - units // 4
    assert read_units(coded, (0, units, first, behind), kept, state, coefficients)
    for number, (start, step) in zip(count(), coded.places.astype(int)):
        ours = coefficients[: last + 1, start::step][:, :units].T
        np.testing.assert_array_equal(ours[:, 0], wanted[:, number, 0])
        np.testing.assert_array_equal(ours[first:behind], wanted[first:behind, number, : last + 1])
        assert not ours[:first, 1:].any()
        assert not ours[behind:, 1:].any()
