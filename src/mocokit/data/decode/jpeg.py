"""Decode JPEG files, at 1/2, 1/4 or 1/8 of their size where the caller needs no more pixels.

At full size the pixels equal Pillow's: simplejpeg and Pillow use the same library, libjpeg-turbo. At a smaller size the
library skips the high frequencies of each 8x8 block before the inverse cosine transform. It still reads the whole bit
stream, which is then most of the cost.
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from mocokit.data.decode.orientation import UPRIGHT, is_on_its_side, jpeg_orientation, turn_upright

FRACTIONS = (8, 4, 2, 1)
"""Divisors of the size for which libjpeg-turbo has vector code."""

MAX_SCANNED_PX = 2**33
"""Largest allowed product of scans and pixels, about 2 s of decoding. A usual progressive JPEG has about 10 scans."""

MIN_SCAN_BYTES = 10
"""Size of the smallest scan: the marker and a header for one component."""

_SCAN_MARKER = b"\xff\xda"
"""Start of a scan. Coded data cannot contain it: there a zero byte follows each 0xff."""


@dataclass(frozen=True, kw_only=True)
class JpegHeader:
    """Facts about a JPEG that are known before it is decoded."""

    height: int
    """Height in pixels after the EXIF orientation is applied."""
    width: int
    """Width in pixels after the EXIF orientation is applied."""
    orientation: int
    """EXIF orientation, 1 to 8; 1 is upright."""


def read_jpeg_header(raw: bytes) -> JpegHeader | None:
    """Return the header of a gray or color JPEG; None for other formats, CMYK, and damaged or hostile files."""
    if raw[:3] != b"\xff\xd8\xff":
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(raw)
    except ValueError:
        return None
    if colors not in {"YCbCr", "RGB", "Gray"} or has_absurd_scans(raw, height * width):
        return None
    orientation = jpeg_orientation(raw)
    if is_on_its_side(orientation):
        height, width = width, height
    return JpegHeader(height=height, width=width, orientation=orientation)


def has_absurd_scans(raw: bytes, num_px: int) -> bool:
    """Return True if decoding would take minutes because the file has thousands of scans.

    A progressive decoder visits every block of the image in each scan, and a scan can be as short as 10 bytes. So a
    file of a few kilobytes can keep the decoder busy for minutes.
    """
    max_scans = len(raw) // MIN_SCAN_BYTES  # a cheap bound first: counting scans costs more than all other checks
    return max_scans * num_px > MAX_SCANNED_PX and raw.count(_SCAN_MARKER) * num_px > MAX_SCANNED_PX


def decode_jpeg(raw: bytes, header: JpegHeader, *, fraction: int) -> NDArray[np.uint8]:
    """Return the upright RGB pixels (h, w, 3) at 1 / `fraction` of the size, rounded up.

    Args:
        raw: The file.
        header: Header of this file.
        fraction: One of FRACTIONS.

    Raises:
        ValueError: The file is damaged or truncated.

    """
    stored = (header.width, header.height) if is_on_its_side(header.orientation) else (header.height, header.width)
    min_height, min_width = (-(-side // fraction) for side in stored)
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(raw, min_height=min_height, min_width=min_width, min_factor=1)
    return pixels if header.orientation == UPRIGHT else turn_upright(pixels, header.orientation)
