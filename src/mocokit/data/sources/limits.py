"""Size limits of the files that we read, and the exceptions that libraries raise on damaged files.

The limits are far above real data and far below what harms a machine; SECURITY.md lists them.
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
"""Stored size of one image: twice 89 megapixels of uncompressed 16-bit RGB."""
MAX_IMAGE_PX = 89_478_485
"""Width x height of an image, unless a setting says otherwise: Pillow's limit for decompression bombs."""
MAX_ENTRIES = 2**25
"""Images of one archive, list or IDX file: 33.5 million; ImageNet-21k has 14.2 million. Larger sets need shards."""
MAX_SHARDS = 10**6
"""Shards that one pattern can name."""
MAX_IDX_BYTES = 2**31
"""Pixels of an IDX file, which stays in memory: 2.7 million images of 28x28."""
MAX_INDEX_RATIO = 200
"""Unpacked size of a shard index over its packed size; below 15 for `mocokit pack`, as checksums don't compress."""

_READER_ERRORS = (
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
)

PILLOW_ERRORS = (*_READER_ERRORS, Image.DecompressionBombError)
"""Exceptions of Pillow's readers on damaged files, found by feeding them cut files and flipped bits."""

ARCHIVE_ERRORS = (
    *_READER_ERRORS,
    NotImplementedError,
    tokenize.TokenError,
    lzma.LZMAError,
    csv.Error,
    tarfile.TarError,
    zipfile.BadZipFile,
)
"""Exceptions of the standard library's and numpy's readers on damaged zip, tar, gzip, csv and npz files."""


def read_regular_file(path: Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        OSError: Not found, not a regular file (a device or a pipe never ends), larger than MAX_IMAGE_BYTES, or a
            git-lfs pointer.

    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        require_image_bytes(status.st_size)
        return refuse_pointer(path.read_bytes())
    except ValueError as error:  # the path holds a NUL character
        raise OSError(f"not a valid path ({error})") from error


def require_image_bytes(size: int) -> None:
    """Raise OSError if `size`, in bytes, is more than MAX_IMAGE_BYTES."""
    if size > MAX_IMAGE_BYTES:
        raise OSError(f"{size} bytes, more than {MAX_IMAGE_BYTES}")


def require_entries(count: int, place: Path | str) -> None:
    """Raise ValueError if `place` holds more than MAX_ENTRIES images."""
    if count > MAX_ENTRIES:
        raise ValueError(f"data={place}: more than {MAX_ENTRIES:,} entries; pack the images into shards")


LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""First bytes of the text file that stands in place of a large file in a repository that uses git-lfs."""
IS_POINTER = "a git-lfs pointer, not the file itself; run `git lfs pull` where it was cloned"


def refuse_pointer(raw: bytes) -> bytes:
    """Return the bytes of an image file; raise OSError if they are a git-lfs pointer."""
    if raw.startswith(LFS_POINTER):
        raise OSError(IS_POINTER)
    return raw


def is_pointer_file(path: Path) -> bool:
    """Return True if the file is a git-lfs pointer."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def refuse_pointer_file(path: Path) -> None:
    """Raise ValueError if the file is a git-lfs pointer."""
    if is_pointer_file(path):
        raise ValueError(f"data={path}: {IS_POINTER}")
