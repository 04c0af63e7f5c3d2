"""Read the tags of a TIFF file's first page, which say how its pixels are stored, without decoding them.

Every count is checked against the file's size before its values are read. Further pages are not looked at.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from mocokit.data.decode.errors import DecodeError
from mocokit.data.decode.orientation import UPRIGHT, valid_orientation, xmp_orientation

SIGNATURES = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
"""First bytes of a TIFF (42, "*") or BigTIFF (43, "+") file -> byte order."""

MAX_TAGS = 1000
"""Tags of a page; a usual page has 12 to 40."""
MAX_VALUES = 2**21
"""Values of one numeric tag: the offsets of 2 million strips."""

SUBFILE_TYPE = 254
WIDTH = 256
LENGTH = 257
BITS = 258
COMPRESSION = 259
PHOTOMETRIC = 262
FILL_ORDER = 266
STRIP_OFFSETS = 273
ORIENTATION = 274
SAMPLES = 277
ROWS_PER_STRIP = 278
STRIP_BYTES = 279
PLANAR = 284
PREDICTOR = 317
TILE_WIDTH = 322
TILE_LENGTH = 323
TILE_OFFSETS = 324
TILE_BYTES = 325
INK_SET = 332
EXTRA_SAMPLES = 338
SAMPLE_FORMAT = 339
XMP = 700
DEPTH = 32997
GDAL_NODATA = 42113

_READ = {
    *(
        SUBFILE_TYPE,
        WIDTH,
        LENGTH,
        BITS,
        COMPRESSION,
        PHOTOMETRIC,
        FILL_ORDER,
        STRIP_OFFSETS,
        ORIENTATION,
        SAMPLES,
        ROWS_PER_STRIP,
    ),
    *(STRIP_BYTES, PLANAR, PREDICTOR, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES, INK_SET, EXTRA_SAMPLES),
    *(SAMPLE_FORMAT, XMP, DEPTH, GDAL_NODATA),
}
"""Tags whose values are read."""

_OWN_LAYOUTS = {34412: "Zeiss LSM", 33629: "MetaMorph STK"}
"""Tag -> kind of microscope file that stores its pixels in an order of its own."""

_NOT_THE_IMAGE = 0b101
"""Bits of NewSubfileType: a reduced copy (raw photographs start with one), and a mask."""

_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 7: "s", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
"""Type number of a tag -> format of one value in `struct`; fractions and floats are in none of the tags we read."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Type number of a tag -> bytes of one value."""


@dataclass(frozen=True, kw_only=True)
class TiffLayout:
    """Storage of the pixels of a TIFF's first page."""

    width: int
    height: int
    bits: int
    """Bits of a sample, the same for all samples."""
    sample_format: int
    """1 unsigned, 2 signed, 3 floating point, else exotic."""
    samples: int
    """Samples of a pixel."""
    extra: tuple[int, ...]
    """Meaning of the last samples: 0 unspecified, 1 alpha that colors are multiplied with, 2 alpha; "ExtraSamples"."""
    photometric: int
    compression: int
    predictor: int
    planar: int
    """1: samples of a pixel side by side; 2: one plane after the other."""
    fill_order: int
    ink_set: int
    segment_px: int
    """Pixels of one strip or tile; tiles at the edge count whole."""
    num_segments: int
    """Strips or tiles that the size asks for, in all planes."""
    segment_bytes: tuple[int, ...]
    """Stored bytes of each strip or tile; empty if the file does not say."""
    segment_offsets: tuple[int, ...]
    """Place of each strip or tile."""
    orientation: int
    """EXIF orientation, 1 to 8."""
    is_big_endian_bigtiff: bool
    """True for the one kind of header that Pillow does not know."""
    nodata: float | None
    """Value of pixels without data (GDAL_NODATA)."""

    @property
    def num_alpha(self) -> int:
        """1 if the last sample is alpha, else 0."""
        return int(bool(self.extra) and self.extra[-1] in {1, 2})


Values = Mapping[int, tuple[int, ...] | bytes]


def is_tiff(raw: bytes) -> bool:
    """Return True if the file starts like a TIFF or BigTIFF."""
    return raw[:4] in SIGNATURES


def read_layout(raw: bytes) -> TiffLayout:
    """Return the layout of the first page.

    Raises:
        DecodeError: The tags are damaged, contradict each other, or are those of a file that is not an image.

    """
    try:
        tags = _read_tags(raw)
    except struct.error as error:
        raise DecodeError(f"damaged TIFF ({error})") from error
    return _layout(tags, is_big_endian_bigtiff=raw[:4] == b"MM\0+")


def has_more_pages(raw: bytes) -> bool:
    """Return True if the second page of a TIFF is an image of its own: no reduced copy, no mask, not damaged."""
    try:
        order, offset_format, _, entry, first = _header(raw)
        num_tags, start = _directory(raw, first)
        (second,) = struct.unpack_from(f"{order}{offset_format}", raw, start + num_tags * entry)
        if second == 0:
            return False
        tags = _read_tags(raw, first=second)
    except (struct.error, DecodeError):
        return False
    return not _number(tags, SUBFILE_TYPE, 0) & _NOT_THE_IMAGE


def _header(raw: bytes) -> tuple[str, str, str, int, int]:
    """Return (byte order, format of offsets, format of the number of tags, bytes of a tag, place of the first page)."""
    order = SIGNATURES[raw[:4]]
    is_big = raw[2:4] in {b"+\0", b"\0+"}
    offset_format, count_format, entry = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    (first,) = struct.unpack_from(f"{order}{offset_format}", raw, 8 if is_big else 4)
    return order, offset_format, count_format, entry, first


def _directory(raw: bytes, first: int) -> tuple[int, int]:
    """Return (number of tags, place of the first tag) of the page at `first`, which may be any number in the file."""
    order, _, count_format, _, _ = _header(raw)
    _require(first < len(raw), "the page lies behind its end")
    (num_tags,) = struct.unpack_from(f"{order}{count_format}", raw, first)
    _require(0 < num_tags <= MAX_TAGS, f"{num_tags} tags")
    return num_tags, first + struct.calcsize(count_format)


def _read_tags(raw: bytes, first: int | None = None) -> dict[int, tuple[int, ...] | bytes]:
    """Return the tags of the page at `first`; None: of the first page."""
    order, offset_format, _, entry, start_page = _header(raw)
    is_big = offset_format == "Q"
    num_tags, start = _directory(raw, start_page if first is None else first)
    found: dict[int, tuple[int, ...] | bytes] = {}
    for at in range(start, start + num_tags * entry, entry):
        tag, kind, count = struct.unpack_from(f"{order}HH{offset_format}", raw, at)
        if tag in _OWN_LAYOUTS:
            raise DecodeError(f"a {_OWN_LAYOUTS[tag]} file; convert it to a plain TIFF or PNG")
        numeric = kind in _SIZES and kind not in {1, 2, 7}
        _require(not numeric or count <= MAX_VALUES, f"tag {tag} has {count} values")
        if tag in _READ and kind in _FORMATS:
            _require(tag not in found, f"tag {tag} twice")
            found[tag] = _read_values(raw, order, kind, count, at + entry - (8 if is_big else 4), offset_format)
    return found


def _read_values(raw: bytes, order: str, kind: int, count: int, at: int, offset_format: str) -> tuple[int, ...] | bytes:
    """Return the values of one tag, whose entry ends in 4 or 8 bytes at `at`: the values, or their place."""
    size = count * _SIZES[kind]
    if size > struct.calcsize(offset_format):
        (at,) = struct.unpack_from(f"{order}{offset_format}", raw, at)
    _require(at + size <= len(raw), "a tag's values lie behind its end")
    if _FORMATS[kind] == "s":
        return raw[at : at + size]
    return struct.unpack_from(f"{order}{count}{_FORMATS[kind]}", raw, at)


def _layout(tags: Values, *, is_big_endian_bigtiff: bool) -> TiffLayout:
    width = _number(tags, WIDTH)
    height = _number(tags, LENGTH)
    _require(width > 0 and height > 0, f"{width}x{height} pixels")
    _require(_number(tags, DEPTH, 1) == 1, "a volume of several slices")
    _require(
        not _number(tags, SUBFILE_TYPE, 0) & _NOT_THE_IMAGE, "its first page is a thumbnail or a mask of another page"
    )
    samples = _number(tags, SAMPLES, 1)
    planar = _number(tags, PLANAR, 1)
    _require(1 <= samples <= 2**16 and planar in {1, 2}, f"{samples} samples, planar configuration {planar}")
    segment_px, num_segments = _segments(tags, width, height)
    offsets = tags.get(TILE_OFFSETS, tags.get(STRIP_OFFSETS, ()))
    stored = tags.get(TILE_BYTES, tags.get(STRIP_BYTES, ()))
    xmp = tags.get(XMP, b"")
    xmp_bytes = xmp if isinstance(xmp, bytes) else bytes(value & 255 for value in xmp)
    turned = valid_orientation(_number(tags, ORIENTATION, UPRIGHT)) if ORIENTATION in tags else None
    return TiffLayout(
        width=width,
        height=height,
        bits=_same(tags, BITS, samples, 1),
        sample_format=_same(tags, SAMPLE_FORMAT, samples, 1),
        samples=samples,
        extra=tuple(tags.get(EXTRA_SAMPLES, ())),
        photometric=_number(tags, PHOTOMETRIC),
        compression=_number(tags, COMPRESSION, 1),
        predictor=_number(tags, PREDICTOR, 1),
        planar=planar if samples > 1 else 1,
        fill_order=_number(tags, FILL_ORDER, 1),
        ink_set=_number(tags, INK_SET, 1),
        segment_px=segment_px,
        num_segments=num_segments * (samples if planar == 2 else 1),
        segment_bytes=tuple(stored),
        segment_offsets=tuple(offsets),
        orientation=xmp_orientation(xmp_bytes) if turned is None else turned,
        is_big_endian_bigtiff=is_big_endian_bigtiff,
        nodata=_nodata(tags.get(GDAL_NODATA, b"")),
    )


def _segments(tags: Values, width: int, height: int) -> tuple[int, int]:
    """Return (pixels of a strip or tile, number of them in a plane)."""
    if TILE_WIDTH in tags or TILE_OFFSETS in tags:
        tile_width = _number(tags, TILE_WIDTH)
        tile_height = _number(tags, TILE_LENGTH)
        _require(tile_width > 0 and tile_height > 0, f"tiles of {tile_width}x{tile_height} pixels")
        return tile_width * tile_height, math.ceil(width / tile_width) * math.ceil(height / tile_height)
    rows = min(_number(tags, ROWS_PER_STRIP, height), height)
    _require(rows > 0, "strips of 0 rows")
    return rows * width, math.ceil(height / rows)


def _number(tags: Values, tag: int, default: int | None = None) -> int:
    """Return the single value of a tag; `default` if it is absent."""
    values = tags.get(tag)
    if not values:
        _require(default is not None, f"tag {tag} is missing")
        return default or 0
    return int(values[0])


def _same(tags: Values, tag: int, samples: int, default: int) -> int:
    """Return the value that a tag has for all samples."""
    values = tuple(tags.get(tag, ())) or (default,)
    _require(len(values) in {1, samples}, f"tag {tag} has {len(values)} values for {samples} samples")
    _require(len(set(values)) == 1, f"samples that differ in tag {tag}: {values[:8]}")
    return int(values[0])


def _nodata(text: tuple[int, ...] | bytes) -> float | None:
    try:
        return float(bytes(text[:64]).split(b"\0")[0].strip().replace(b",", b"."))
    except ValueError:
        return None


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise DecodeError(f"damaged or unusual TIFF: {reason}")
