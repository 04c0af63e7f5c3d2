"""Turn pixels upright as the EXIF orientation says, and find the orientation wherever Pillow finds it."""

import re
import warnings
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.sources.limits import PILLOW_ERRORS

UPRIGHT = 1
"""EXIF orientation of an image that needs no turn."""

ORIENTATION_TAG = 0x0112

_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
"""EXIF orientation -> (counterclockwise quarter turns, then mirror left to right)."""

_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
"""Pillow's pattern: an XMP block says the orientation of a file that has no EXIF tag for it."""

_APP1 = 0xE1
"""Marker of the segments that hold EXIF and XMP."""
_START_OF_SCAN = 0xDA
_MAX_SEGMENTS = 10_000
"""Segments before the first scan that are searched; a usual JPEG has about 10."""


def is_on_its_side(orientation: int) -> bool:
    """Return True if turning the image upright swaps its width and height."""
    return orientation > 4


def turn_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return the pixels (H, W, ...) turned upright; other numbers than 2 to 8 change nothing."""
    if orientation not in _TURNS:
        return pixels
    quarter_turns, mirror = _TURNS[orientation]
    turned = np.rot90(pixels, quarter_turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirror else turned)


def valid_orientation(value: object) -> int:
    """Return an EXIF orientation; UPRIGHT if `value` is none, which damaged files hold."""
    return value if isinstance(value, int) and value in _TURNS else UPRIGHT


def xmp_orientation(xmp: bytes) -> int:
    """Return the orientation that an XMP block names, UPRIGHT if none."""
    found = _XMP_ORIENTATION.search(xmp)
    return valid_orientation(int(found[1])) if found else UPRIGHT


def jpeg_orientation(raw: bytes) -> int:
    """Return the EXIF orientation of a JPEG, from its EXIF block or XMP block, in any segment before the first scan."""
    if not _may_be_turned(raw):
        return UPRIGHT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd EXIF, and about large sizes, which the caller checks
            return valid_orientation(Image.open(BytesIO(raw), formats=("JPEG",)).getexif().get(ORIENTATION_TAG))
    except PILLOW_ERRORS:
        return UPRIGHT


def _may_be_turned(raw: bytes) -> bool:
    """Return True if a segment before the first scan can hold an orientation, or if the segments are out of order.

    A walk over 10 segments takes a few microseconds, opening the file with Pillow about 100.
    """
    at = 2
    for _ in range(_MAX_SEGMENTS):
        if raw[at : at + 1] != b"\xff" or at + 4 > len(raw):
            return True  # padding or junk between segments: Pillow decides
        marker = raw[at + 1]
        if marker == _START_OF_SCAN:
            return False
        length = int.from_bytes(raw[at + 2 : at + 4], "big")
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # markers without a length, which do not belong here
            return True
        if marker == _APP1 and _names_orientation(raw[at + 4 : at + 2 + length]):
            return True
        at += 2 + length
    return True


def _names_orientation(segment: bytes) -> bool:
    return segment.startswith(b"Exif\0") or b"tiff:Orientation" in segment
