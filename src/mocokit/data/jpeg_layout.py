"""What a JPEG file says before its picture: sizes, tables, and where the coded data begin (ITU-T T.81, annex B)."""

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_BASELINE = 0xC0
_HUFFMAN = 0xC4
_SCAN = 0xDA
_QUANTIZATION = 0xDB
_RESTART = 0xDD
_ADOBE = 0xEE
_FRAMES = set(range(0xC0, 0xD0)) - {_HUFFMAN, 0xC8, 0xCC}
"""Baseline, and extended, progressive, lossless, arithmetic."""

_END = b"\xff\xd9"


@dataclass(frozen=True, kw_only=True)
class Component:
    """Brightness or one of the two colors."""

    across: int
    """Blocks of 8x8 side by side in a unit, 1 or 2."""
    down: int
    quantization: bytes
    """64 steps in zigzag order, two bytes each, the high one first."""
    dc_codes: bytes
    """Huffman code of a block's mean: how many codes have 1 to 16 bits, then what they stand for."""
    ac_codes: bytes


@dataclass(frozen=True, kw_only=True)
class JpegLayout:
    """A baseline JPEG in one scan."""

    height: int
    width: int
    components: tuple[Component, ...]
    """Brightness alone, or with both colors."""
    restart_units: int
    """Units between two restarts of the coded data; 0: none."""
    data_start: int
    """Offset of the coded data."""

    @functools.cached_property
    def unit_px(self) -> tuple[int, int]:
        """(height, width) of a unit, the least that is coded together."""
        return 8 * max(part.down for part in self.components), 8 * max(part.across for part in self.components)

    @functools.cached_property
    def num_units(self) -> tuple[int, int]:
        """Units (down, across) that the picture takes."""
        height, width = self.unit_px
        return -(-self.height // height), -(-self.width // width)


def read_layout(raw: bytes) -> JpegLayout | None:
    """The layout; None for all but plain files: baseline, 8 bits, brightness and color in one scan, not cut short."""
    if _END not in raw[-1024:]:
        return None
    try:
        return _read_layout(raw)
    except (IndexError, KeyError, ValueError):
        return None


def _read_layout(raw: bytes) -> JpegLayout | None:
    quantization = dict[int, bytes]()
    codes = dict[int, bytes]()
    frame = b""
    restart_units = 0
    for marker, body, end in _segments(raw):
        if marker == _QUANTIZATION:
            quantization.update(_quantization_tables(body))
        elif marker == _HUFFMAN:
            codes.update(_huffman_codes(body))
        elif marker == _RESTART:
            restart_units = int.from_bytes(body[:2], "big")
        elif marker == _BASELINE and not frame:
            frame = body
        elif marker in _FRAMES or (marker == _ADOBE and body[11:12] == b"\0"):  # Adobe's red, green and blue
            return None
        elif marker == _SCAN:
            components = tuple(_components(frame, body, quantization, codes))
            height = int.from_bytes(frame[1:3], "big")
            width = int.from_bytes(frame[3:5], "big")
            if not height or not width or frame[0] != 8:
                return None
            return JpegLayout(
                height=height, width=width, components=components, restart_units=restart_units, data_start=end
            )
    return None


def _segments(raw: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(marker, content, end) of each segment; ends with an IndexError where there is no more."""
    position = 2
    while True:
        if raw[position] != 0xFF:
            raise ValueError("no marker")
        marker = raw[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        end = position + 2 + int.from_bytes(raw[position + 2 : position + 4], "big")
        if end > len(raw) or end < position + 4:
            raise ValueError("cut short")
        yield marker, raw[position + 4 : end], end
        position = end


@functools.lru_cache(maxsize=64)
def _quantization_tables(body: bytes) -> dict[int, bytes]:
    tables = {}
    while body:
        number = body[0] & 15
        length = 128 if body[0] >> 4 else 64
        if len(body) < 1 + length:
            raise ValueError("cut short")
        tables[number] = body[1:129] if length == 128 else struct.pack(">64H", *body[1:65])
        body = body[1 + length :]
    return tables


@functools.lru_cache(maxsize=64)
def _huffman_codes(body: bytes) -> dict[int, bytes]:
    """Code by number of its table (16 and more: AC)."""
    codes = {}
    while body:
        length = 17 + sum(body[1:17])
        if len(body) < length:
            raise ValueError("cut short")
        codes[body[0]] = body[1:length]
        body = body[length:]
    return codes


def _components(
    frame: bytes, scan: bytes, quantization: dict[int, bytes], codes: dict[int, bytes]
) -> Iterator[Component]:
    """Those of the frame, if the one scan holds them all in the same order."""
    count = frame[5]
    if count not in {1, 3} or scan[0] != count:
        raise ValueError("not one scan of brightness and colors")
    for number in range(count):
        name, sampling, table = frame[6 + 3 * number : 9 + 3 * number]
        scanned, coded = scan[1 + 2 * number : 3 + 2 * number]
        across, down = (sampling >> 4, sampling & 15) if count == 3 else (1, 1)  # alone, blocks come one by one
        if name != number + 1 or name != scanned or across not in {1, 2} or down not in {1, 2}:
            raise ValueError("an unusual arrangement")
        yield Component(
            across=across,
            down=down,
            quantization=quantization[table],
            dc_codes=codes[coded >> 4],
            ac_codes=codes[16 + (coded & 15)],
        )
