"""Sizes of image files from their headers, without decoding."""

import warnings
from pathlib import Path

from PIL import ExifTags, Image

from mocokit.data.decode.decode import FORMATS
from mocokit.data.sources.limits import PILLOW_ERRORS

_SIDEWAYS = range(5, 9)
"""EXIF orientations that exchange width and height."""


def stored_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image, upright, from its header.

    Raises:
        ValueError: The file can't be read.

    """
    try:
        if not path.is_file():  # also a pipe, which never ends
            raise FileNotFoundError("no such file")
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # about large sizes; the decoder has its own limit
            sideways = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
            return (image.height, image.width) if sideways else image.size
    except PILLOW_ERRORS as error:
        raise ValueError(f"data={path}: can't be read ({error})") from error
