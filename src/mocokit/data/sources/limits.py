"""What a file may ask of its reader, and what the readers of damaged files raise.

Limits are far above honest data and far below what harms a machine; SECURITY.md lists them.
"""

import csv
import lzma
import stat
import struct
import tarfile
import tokenize
import zipfile
import zlib
from pathlib import Path

from PIL import Image

MAX_IMAGE_BYTES = 2**30
"""One image as stored: twice 89 megapixels of 16-bit RGB without compression."""
MAX_IMAGE_PX = 89_478_485
"""Width x height of an image, unless a setting says otherwise: Pillow's limit for decompression bombs."""
MAX_ENTRIES = 2**25
"""Images of one archive, list or IDX file: 33.5 million; ImageNet-21k has 14.2 million. More go into shards."""
MAX_SHARDS = 10**6
"""Shards that one pattern may name."""
MAX_IDX_BYTES = 2**31
"""Pixels of an IDX file, which is held in memory: 2.7 million images of 28x28."""
MAX_INDEX_RATIO = 200
"""Unpacked over packed size of a shard index; those of `mocokit pack` stay below 15, since checksums don't compress."""

PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's readers raise on damaged files, found by feeding them cut and flipped ones."""

ARCHIVE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    tokenize.TokenError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    csv.Error,
    tarfile.TarError,
    zipfile.BadZipFile,
)
"""What the standard library's and numpy's readers raise on damaged zip, tar, gzip, csv and npz files."""


def read_regular_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: Absent, not a regular file (a device or a pipe never ends), or over MAX_IMAGE_BYTES.

    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        require_image_bytes(status.st_size)
        return path.read_bytes()
    except ValueError as error:  # a NUL in the path
        raise OSError(f"not a path ({error})") from error


def require_image_bytes(size: int) -> None:
    """Raise OSError when an image of `size` bytes is absurdly large."""
    if size > MAX_IMAGE_BYTES:
        raise OSError(f"{size} bytes, more than {MAX_IMAGE_BYTES}")


def require_entries(count: int, place: Path | str) -> None:
    """Raise ValueError when `place` holds more images than MAX_ENTRIES."""
    if count > MAX_ENTRIES:
        raise ValueError(f"data={place}: more than {MAX_ENTRIES:,} entries; pack the images into shards")
