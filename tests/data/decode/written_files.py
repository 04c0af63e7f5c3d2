"""Write TIFF and PNG files byte by byte, without the libraries that read them. Shapes: H x W pixels of S samples."""

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Order = Literal["<", ">"]


def pack_bits(samples: Array, bits: int) -> bytes:
    """Return unsigned samples (rows, values) in `bits` bits each, each row filled up to whole bytes."""
    if bits in {8, 16, 32, 64}:
        return samples.tobytes()
    places = np.arange(bits - 1, -1, -1)
    flags = (samples.astype(np.uint64)[..., None] >> places.astype(np.uint64)) & np.uint64(1)
    return np.packbits(flags.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


def run_lengths(raw: bytes) -> bytes:
    """Return `raw` as PackBits literals of at most 128 bytes."""
    parts = [raw[at : at + 128] for at in range(0, len(raw), 128)]
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


FORMATS = {3: "H", 4: "I"}
"""Type of a tag -> format of its values in struct; types 1 and 2 are bytes already."""

COMPRESSORS: dict[int, Callable[[bytes], bytes]] = {
    1: bytes,
    8: zlib.compress,
    32946: zlib.compress,
    32773: run_lengths,
}


def tiff(
    pixels: Array,
    *,
    photometric: int,
    order: Order = "<",
    big: bool = False,
    planar: int = 1,
    compression: int = 1,
    predictor: int = 1,
    bits: int | None = None,
    sample_format: int | None = None,
    extra: Sequence[int] = (),
    orientation: int | None = None,
    rows: int | None = None,
    tile: int | None = None,
    tags: Sequence[tuple[int, int, Sequence[int] | bytes]] = (),
    blob: bytes | None = None,
) -> bytes:
    """Return a TIFF file of pixels (H, W, S).

    Args:
        pixels: The samples.
        photometric: PhotometricInterpretation.
        order: "<" or ">".
        big: Write BigTIFF.
        planar: 1: samples side by side; 2: planes.
        compression: One of COMPRESSORS; any other with `blob`.
        predictor: 1, or 2 for horizontal differences.
        bits: Bits of a sample; None: those of the type.
        sample_format: None: by the type.
        extra: ExtraSamples.
        orientation: EXIF orientation; None: no tag.
        rows: Rows of a strip; None: one strip.
        tile: Side of a tile; None: strips.
        tags: Further tags: (number, type 2 ASCII, 3 SHORT or 4 LONG, values).
        blob: Coded data of the only strip.

    """
    height, width, samples = pixels.shape
    bits = bits or pixels.dtype.itemsize * 8
    planes = [pixels] if planar == 1 else [pixels[:, :, band : band + 1] for band in range(samples)]
    parts = [blob] if blob is not None else []
    for plane in planes if blob is None else ():
        for block in _blocks(plane, rows or height, tile):
            values = block
            if predictor == 2:
                values = block.copy()
                values[:, 1:] -= block[:, :-1]
            stored = values.astype(values.dtype.newbyteorder(order))
            parts.append(COMPRESSORS[compression](pack_bits(stored.reshape(len(block), -1), bits)))
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind] if sample_format is None else sample_format
    entries: list[tuple[int, int, Sequence[int] | bytes]] = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits] * samples),
        (259, 3, [compression]),
        (262, 3, [photometric]),
        (277, 3, [samples]),
        (284, 3, [planar]),
        (339, 3, [kind] * samples),
        *([(274, 3, [orientation])] if orientation else []),
        *([(317, 3, [predictor])] if predictor != 1 else []),
        *([(338, 3, list(extra))] if extra else []),
        *([(322, 4, [tile]), (323, 4, [tile])] if tile else [(278, 4, [rows or height])]),
        *tags,
    ]
    return _file(entries, parts, (324, 325) if tile else (273, 279), order, big)


def _blocks(plane: Array, rows: int, tile: int | None) -> list[Array]:
    height, width, samples = plane.shape
    if tile is None:
        return [plane[top : top + rows] for top in range(0, height, rows)]
    padded = np.zeros((-(-height // tile) * tile, -(-width // tile) * tile, samples), plane.dtype)
    padded[:height, :width] = plane
    tops, lefts = range(0, len(padded), tile), range(0, padded.shape[1], tile)
    return [padded[top : top + tile, left : left + tile] for top in tops for left in lefts]


def _file(
    entries: Sequence[tuple[int, int, Sequence[int] | bytes]],
    parts: Sequence[bytes],
    places: tuple[int, int],
    order: Order,
    big: bool,
) -> bytes:
    word, entry, count = ("Q", 20, "Q") if big else ("I", 12, "H")
    inline = struct.calcsize(word)
    start = 16 if big else 8
    all_entries = sorted([*entries, (places[0], 4, [0] * len(parts)), (places[1], 4, [len(part) for part in parts])])
    at = start + struct.calcsize(count) + entry * len(all_entries) + inline
    sizes = {1: 1, 2: 1, 3: 2, 4: 4}
    long_values = sum(
        len(values) * sizes[kind] for _, kind, values in all_entries if len(values) * sizes[kind] > inline
    )
    offsets = [at + long_values + sum(len(part) for part in parts[:number]) for number in range(len(parts))]
    head, tail = b"", b""
    for tag, kind, stored in all_entries:
        values = offsets if tag == places[0] else stored
        raw = values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{FORMATS[kind]}", *values)
        body = raw.ljust(inline, b"\0")
        if len(raw) > inline:
            body = struct.pack(order + word, at + len(tail))
            tail += raw
        head += struct.pack(f"{order}HH{word}", tag, kind, len(values)) + body
    mark = {"<": b"II", ">": b"MM"}[order]
    version = struct.pack(order + "HHH", 43, 8, 0) if big else struct.pack(order + "H", 42)
    directory = struct.pack(order + count, len(all_entries)) + head + struct.pack(order + word, 0)
    return mark + version + struct.pack(order + word, start) + directory + tail + b"".join(parts)


PNG_COLORS = {1: 0, 2: 4, 3: 2, 4: 6}
"""Samples of a pixel -> the color type of a PNG."""

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""(first row, first column, row step, column step) of the passes of an interlaced PNG."""


def png(
    pixels: Array,
    *,
    bits: int,
    palette: Array | None = None,
    interlaced: bool = False,
    filtered: bool = False,
    chunks: Sequence[tuple[bytes, bytes]] = (),
    late_chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Return a PNG file of unsigned pixels (H, W, S), S = 1 gray or palette, 2 gray + alpha, 3 RGB, 4 RGB + alpha.

    `chunks` stand before the image data, `late_chunks` after it. `filtered`: the rows are stored as differences.
    """
    height, width, samples = pixels.shape
    color = PNG_COLORS[samples] if palette is None else 3
    header = struct.pack(">2I5B", width, height, bits, color, 0, 0, int(interlaced))
    steps = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [pixels[top::down, left::right] for top, left, down, right in steps]
    data = b"".join(_png_rows(part, bits, filtered) for part in parts if part.size)
    all_chunks = [(b"IHDR", header), *chunks]
    if palette is not None:
        all_chunks.insert(1, (b"PLTE", palette.astype(np.uint8).tobytes()))
    all_chunks += [(b"IDAT", zlib.compress(data)), *late_chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in all_chunks
    )


def _png_rows(part: Array, bits: int, filtered: bool) -> bytes:
    rows = [pack_bits(row.reshape(1, -1).astype(f">u{max(1, bits // 8)}"), bits) for row in part]
    if not filtered:
        return b"".join(b"\0" + row for row in rows)
    above = [bytes(len(rows[0])), *rows[:-1]]
    ups = [
        bytes((here - there) & 255 for here, there in zip(*pair, strict=True)) for pair in zip(rows, above, strict=True)
    ]
    return b"".join(b"\2" + up for up in ups)


def orientation_exif(orientation: int) -> bytes:
    """Return an EXIF block (without the name that JPEG puts before it) that holds an orientation."""
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
