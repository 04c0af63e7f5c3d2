"""Sizes and content hashes of a source's images, from what is known without reading everything.

| source | size | content hash |
|---|---|---|
| folder, list | `stat` of each file | up to SAMPLED_IMAGES files, up to WHOLE_BYTES of each |
| zip | directory of the archive | CRC-32 of each member, from the same place |
| tar | its headers | as for a folder |
| shards of `mocokit pack` | their index | CRC-32 of each image, from the index |
| shards of other tools | their headers | as for a folder; behind a url up to SAMPLED_READS images |
| IDX, images in memory | | all bytes |
| objects of the user's | | up to SAMPLED_READS images, read |

Times of modification are left out: a copy of the files has new ones and is the same data.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.archives import ZipSource
from mocokit.data.sources.cifar import CifarSource
from mocokit.data.sources.idx import IdxSource
from mocokit.data.sources.names import Names
from mocokit.data.sources.objects import ImageList
from mocokit.data.sources.shards import ShardSource, is_url
from mocokit.data.sources.sources import FileSource, ImageSource, RawImage
from mocokit.data.sources.tar_archive import TarSource

T = TypeVar("T")

SAMPLED_IMAGES = 4096
"""About this many files are opened: a share r of exchanged files of unchanged size stays unseen with (1 - r)^4096."""
SAMPLED_READS = 256
"""The same for images that a network or an object of the user's has to deliver whole."""
WHOLE_BYTES = 3 * 2**14
"""A sampled file of at most this size is hashed whole, a larger one at its start, middle and end: 200 MB in all."""
UNKNOWN = -1
"""Stands for a size that is not known."""
MISSING = -2
"""Stands for the size of a file that is not there."""
NOT_SAMPLED = 0
"""Stands for the content hash of an image that was not looked at."""
UNREADABLE = 1
"""Stands for the content hash of a sampled image that can't be read."""

_THREADS = 16
_MIN_CHUNK = 64
_MAX_CHUNK = 4096
"""Files that a thread looks at before it asks for more; few of a small set, so that all threads have some."""

_Span = tuple[Path, int, int]
"""(file, offset, size) of a stored image"""

Contents = tuple[NDArray[np.int64], NDArray[np.uint64]]
"""Size in bytes, UNKNOWN or MISSING, and content hash, or NOT_SAMPLED, of each image."""


def contents_of(source: ImageSource, names: Sequence[str]) -> Contents:
    """Return size and content hash of each image.

    Args:
        source: The images.
        names: A name for each image that doesn't depend on where the data is. The sample is drawn by a hash of the
            name, so it is the same for every caller, and an added image hardly changes it.

    """
    if isinstance(source, FileSource):
        return _hash_files(source, names)
    if isinstance(source, ZipSource):
        return _zip_directory(source)
    if isinstance(source, TarSource):
        return _hash_spans(lambda index: (source.path, *source.spans[index].tolist()), source.spans[:, 1], names)
    if isinstance(source, ShardSource):
        return _shard_contents(source, names)
    if is_in_memory(source):
        return _hash_reads(source, range(len(source)))
    return _hash_reads(source, draw_sample(names, SAMPLED_READS))


def draw_sample(names: Sequence[str], count: int) -> list[int]:
    """Return the positions of about `count` images, drawn by a hash of their names; of all images if they are fewer."""
    if len(names) <= count:
        return list(range(len(names)))
    limit = count * 2**64 // len(names)
    encoded = names.encoded() if isinstance(names, Names) else map(_encode, names)
    return [index for index, name in enumerate(encoded) if _hash(name) < limit]


def _hash_files(source: FileSource, names: Sequence[str]) -> Contents:
    """Return the contents of files; the size of a missing file is MISSING."""
    root = str(source.root)

    def size(name: str) -> int:
        """Return the size of a file; not by pathlib, which takes longer than the system call."""
        return _size_of(os.path.join(root, name))  # noqa: PTH118

    sizes = np.array(_in_threads(size, source.names), np.int64)
    for index in np.flatnonzero(sizes == MISSING).tolist():  # pathlib reads `a.jpg/`, which a list may hold, as `a.jpg`
        sizes[index] = _size_of(source.root / source.names[index])
    return _hash_spans(lambda index: (source.root / source.names[index], 0, int(sizes[index])), sizes, names)


def _in_threads(function: Callable[[T], int], items: Sequence[T]) -> list[int]:
    """Map `function` over the items by threads, which wait for a disk or a network together."""
    size = max(_MIN_CHUNK, min(_MAX_CHUNK, len(items) // (_THREADS * _THREADS)))
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    if len(chunks) == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="identity") as threads:
        parts = threads.map(lambda chunk: [function(item) for item in chunk], chunks)
        return [value for part in parts for value in part]


def _size_of(path: Path | str) -> int:
    """Return the size of a regular file; a device or a pipe, which never ends, counts as missing."""
    try:
        status = os.stat(path)  # noqa: PTH116  # the path may be text
    except (OSError, ValueError):  # ValueError: a path with a NUL character
        return MISSING
    return status.st_size if stat.S_ISREG(status.st_mode) else MISSING


def _hash_span(place: _Span) -> int:
    """Return the content hash of `size` bytes from `offset` on in a file; UNREADABLE if they can't be read."""
    path, offset, size = place
    if size < 0:
        return UNREADABLE
    try:
        with path.open("rb") as file:
            return _hash_pieces(file, offset, size)
    except (OSError, ValueError):
        return UNREADABLE


def _hash_pieces(file: BinaryIO, offset: int, size: int) -> int:
    """Return the hash of a stored image: of all its bytes, or of its start, middle and end if it is large."""
    if size <= WHOLE_BYTES:
        file.seek(offset)
        return _hash(file.read(size))
    piece = WHOLE_BYTES // 3
    digest = hashlib.blake2b(digest_size=8)
    for start in (0, (size - piece) // 2, size - piece):
        file.seek(offset + start)
        digest.update(file.read(piece))
    return _as_content(digest.digest())


def _hash(raw: bytes) -> int:
    return _as_content(hashlib.blake2b(raw, digest_size=8).digest())


def _as_content(digest: bytes) -> int:
    """Return a hash as a number that is neither NOT_SAMPLED nor UNREADABLE."""
    return max(int.from_bytes(digest, "little"), UNREADABLE + 1)


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _spread(sampled: Sequence[int], hashes: Sequence[int], count: int) -> NDArray[np.uint64]:
    """Return (count,) hashes with those of the sample at their places."""
    contents = np.full(count, NOT_SAMPLED, np.uint64)
    contents[list(sampled)] = np.array(hashes, np.uint64)
    return contents


def _zip_directory(source: ZipSource) -> Contents:
    """Return sizes and checksums as the archive's directory tells; nothing is read."""
    sizes, checksums = np.array(source.facts, np.int64).T
    return np.ascontiguousarray(sizes), _from_checksums(checksums)


def _from_checksums(checksums: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return CRC-32 checksums as content hashes."""
    return checksums.astype(np.uint64) + np.uint64(UNREADABLE + 1)


def _shard_contents(source: ShardSource, names: Sequence[str]) -> Contents:
    sizes, checksums = source.index.members[2:]
    if (checksums >= 0).all():
        return sizes, _from_checksums(checksums)
    if is_remote(source):
        sampled = draw_sample(names, SAMPLED_READS)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="identity") as threads:
            hashes = list(threads.map(lambda index: _hash_raw(source.read(index)), sampled))
        return sizes, _spread(sampled, hashes, len(names))

    def place_of(index: int) -> _Span:
        shard, offset, size = source.index.members[:3, index].tolist()
        return Path(source.shards[shard]), offset, size

    return _hash_spans(place_of, sizes, names)


def _hash_spans(place_of: Callable[[int], _Span], sizes: NDArray[np.int64], names: Sequence[str]) -> Contents:
    """Return the contents of images in files.

    Args:
        place_of: Gives (path, offset, size) of an image.
        sizes: Size of each image.
        names: See `contents_of`.

    """
    sampled = draw_sample(names, SAMPLED_IMAGES)
    return sizes, _spread(sampled, _in_threads(_hash_span, [place_of(index) for index in sampled]), len(names))


def _hash_reads(source: ImageSource, sampled: Sequence[int]) -> Contents:
    """Return the contents of images that are read whole, one by one; sizes are those of the sample."""
    sizes = np.full(len(source), UNKNOWN, np.int64)
    hashes = list[int]()
    for index in sampled:
        try:
            raw = source.read(index)
        except OSError:
            hashes.append(UNREADABLE)
            continue
        hashes.append(_hash_raw(raw))
        sizes[index] = len(raw) if isinstance(raw, bytes) else raw.nbytes
    return sizes, _spread(sampled, hashes, len(source))


def _hash_raw(raw: RawImage) -> int:
    if isinstance(raw, bytes):
        return _hash_pieces(BytesIO(raw), 0, len(raw))
    return _hash(repr(raw.shape).encode() + raw.tobytes())


def is_in_memory(source: ImageSource) -> bool:
    """Return True if the source holds all pixels in memory, so that hashing them reads nothing."""
    return isinstance(source, IdxSource | CifarSource | ImageList)


def is_remote(source: ImageSource) -> bool:
    """Return True if reading an image of the source is a request to a server."""
    return isinstance(source, ShardSource) and any(is_url(shard) for shard in source.shards)


def has_checksums(source: ImageSource) -> bool:
    """Return True if the content hashes of the source are the CRC-32 of each image."""
    if isinstance(source, ShardSource):
        return bool((source.index.members[3] >= 0).all())
    return isinstance(source, ZipSource)


def hash_images(source: ImageSource, positions: Sequence[int]) -> list[int]:
    """Return hashes of stored images that can be compared between all kinds of sources.

    Images of files, tar files and shards on this machine are hashed like the sample of `contents_of`; others are read
    whole. An image that can't be read has a hash that no image has.
    """
    if isinstance(source, FileSource):
        paths = [source.root / source.names[index] for index in positions]
        return _in_threads(_hash_span, [(path, 0, _size_of(path)) for path in paths])
    if isinstance(source, TarSource):
        return _in_threads(_hash_span, [(source.path, *source.spans[index].tolist()) for index in positions])
    if isinstance(source, ShardSource) and not is_remote(source):
        columns = zip(*(column[list(positions)].tolist() for column in source.index.members[:3]), strict=True)
        return _in_threads(_hash_span, [(Path(source.shards[shard]), offset, size) for shard, offset, size in columns])
    hashes = _hash_reads(source, positions)[1]
    return [int(hashes[index]) for index in positions]
