"""JPEG files, decoded at a fraction of their size where that is enough: 1/2, 1/4 or 1/8.

At full size the pixels are Pillow's, which has the same library inside, libjpeg-turbo. The smaller sizes leave out the
high frequencies of each 8x8 block before it is decoded; what remains of the cost is reading the bit stream, of which
jpeg_small.py reads less.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.jpeg_codes import has_standard_codes
from mocokit.data.jpeg_layout import JpegLayout, read_layout
from mocokit.data.jpeg_small import LEAST_FRACTION, Box, decode_small
from mocokit.data.sources.limits import PILLOW_ERRORS

FRACTIONS = (8, 4, 2, 1)
"""Sizes that there is fast code for, as divisors."""

Crop = tuple[int, int, int, int]
"""(top, left, height, width)"""

LEAST_BYTES = 32_000
LARGE_BYTES = 256_000
"""From when on jpeg_small.py pays: with standard codes, and with codes that it must make tables of first."""

_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
"""EXIF orientation -> (quarter turns against the clock, then mirror)."""


@dataclass(frozen=True, kw_only=True)
class JpegHeader:
    """What is known of a JPEG before it is decoded."""

    height: int
    """Upright, as EXIF says."""
    width: int
    orientation: int
    """EXIF's 1 to 8; 1 is upright."""
    layout: JpegLayout | None
    """Of a large plain file; None: not looked at, or not plain."""


def read_jpeg_header(raw: bytes) -> JpegHeader | None:
    """The header of a JPEG in gray or color; None for anything else, be it another format, CMYK or damaged."""
    if raw[:3] != b"\xff\xd8\xff":
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(raw)
    except ValueError:
        return None
    layout = read_layout(raw) if len(raw) >= LARGE_BYTES else None
    if colors not in {"YCbCr", "RGB", "Gray"} or (layout is None and has_absurd_scans(raw, height * width)):
        return None
    orientation = _orientation(raw)
    if orientation > 4:  # lies on its side
        height, width = width, height
    return JpegHeader(height=height, width=width, orientation=orientation, layout=layout)


_SCAN = b"\xff\xda"
"""Can't occur in coded data."""

LEAST_SCAN_BYTES = 10
"""Marker and header of one component."""

MAX_SCANNED_PX = 2**33
"""Scans times pixels, about 2 s of decoding. A progressive JPEG has some 10 scans, each of which visits every block."""


def has_absurd_scans(raw: bytes, num_px: int) -> bool:
    """Whether a JPEG of a few bytes would keep its decoder busy for minutes by going over the image again and again."""
    most = len(raw) // LEAST_SCAN_BYTES  # counting takes longer than all else that is done before decoding
    return most * num_px > MAX_SCANNED_PX and raw.count(_SCAN) * num_px > MAX_SCANNED_PX


def _orientation(raw: bytes) -> int:
    if raw.find(b"Exif\0", 0, 1 << 12) < 0:  # the block comes first, or right after JFIF's
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF and of sizes, which the caller checks
            orientation = Image.open(BytesIO(raw), formats=("JPEG",)).getexif().get(0x0112)
    except PILLOW_ERRORS:
        return 1
    return orientation if orientation in _TURNS else 1


def decode_jpeg(raw: bytes, header: JpegHeader, *, fraction: int, crops: Iterable[Crop] = ()) -> NDArray[np.uint8]:
    """The upright RGB pixels (h, w, 3) at 1 / `fraction` of the size, rounded up.

    Args:
        raw: The file.
        header: Of this file.
        fraction: One of FRACTIONS.
        crops: What will be looked at, in pixels of the whole size: the rest may be undefined. All, if there are none.

    Raises:
        ValueError: Damaged or cut short.

    """
    stored = (header.width, header.height) if header.orientation > 4 else (header.height, header.width)
    least = [-(-side // fraction) for side in stored]
    pixels = None
    if fraction >= LEAST_FRACTION and (layout := header.layout or _layout_of_small(raw)) is not None:
        part = (0, 0, *stored) if header.orientation != 1 else _around(list(crops) or [(0, 0, *stored)])
        pixels = decode_small(raw, layout, fraction=fraction, part=part)
    if pixels is None or [*pixels.shape[:2]] != least:
        pixels = simplejpeg.decode_jpeg(raw, min_height=least[0], min_width=least[1], min_factor=1)
    if header.orientation == 1:
        return pixels
    quarters, mirror = _TURNS[header.orientation]
    upright = np.rot90(pixels, quarters)
    return np.ascontiguousarray(upright[:, ::-1] if mirror else upright)


def _layout_of_small(raw: bytes) -> JpegLayout | None:
    if not LEAST_BYTES <= len(raw) < LARGE_BYTES or (layout := read_layout(raw)) is None:
        return None
    return layout if has_standard_codes(layout) else None


def _around(crops: Sequence[Crop]) -> Box:
    """What holds all of them."""
    corners = np.array([(top, left, top + height, left + width) for top, left, height, width in crops])
    return (*corners[:, :2].min(axis=0).tolist(), *corners[:, 2:].max(axis=0).tolist())
