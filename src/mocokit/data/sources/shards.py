"""Source of images in tar shards, as local files or behind a url, read in any order by byte range.

Urls need fsspec, and s3fs, gcsfs or aiohttp with it; these packages are imported when the first url is opened.
"""

import errno
import functools
import os
import re
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mocokit.data.sources.left_out import LeftOut, LeftOutTally
from mocokit.data.sources.limits import MAX_SHARDS, refuse_pointer, refuse_pointer_file, require_image_bytes
from mocokit.data.sources.shard_index import INDEX_NAME, SHARD_NAME, ShardIndex, load_index
from mocokit.data.sources.webdataset import Sample, index_samples, walk_shard
from mocokit.settings import require

T = TypeVar("T")

MAX_OPEN_FILES = 256
"""Shards that one process keeps open; small machines allow about twice as many."""
WAITS_S = (0.5, 1.0, 2.0, 4.0)
"""Waits before each new attempt after a network error."""
SCHEMES = frozenset({"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "file", "memory"})
"""Url schemes that we read. fsspec has more; a `reference::` url, for one, renders templates out of a file it loads."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# Network errors that are no OSError, by module. Only packages that a url has loaded are looked at.
_NETWORK_ERRORS = {
    "aiohttp": "ClientError",
    "botocore.exceptions": "BotoCoreError",
    "gcsfs.retry": "HttpError",
    "google.auth.exceptions": "GoogleAuthError",
}


def is_url(location: str) -> bool:
    """Return True for `scheme://...`, False for a path."""
    return "://" in location


def is_pattern(location: str) -> bool:
    """Return True if the location holds a range such as `{000..127}`."""
    return _RANGE.search(location) is not None


def expand_pattern(pattern: str) -> list[str]:
    """Return the names that a pattern stands for: `a-{08..10}` gives a-08, a-09, a-10.

    Several ranges give all combinations; the last range counts fastest.

    Raises:
        ValueError: A range counts down, or there are more than MAX_SHARDS names.

    """
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    require(int(first) <= int(last), "data", pattern, f"{found[0]} counts down; write the smaller number first")
    ends = expand_pattern(pattern[found.end() :])
    num_shards = (int(last) - int(first) + 1) * len(ends)
    require(num_shards <= MAX_SHARDS, "data", pattern, f"names more than {MAX_SHARDS:,} shards")
    starts = [f"{pattern[: found.start()]}{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return [start + end for start in starts for end in ends]


class _OpenFile:
    """A file descriptor that is closed when its last reference goes away."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):  # not if `os.open` failed
            os.close(self.descriptor)


class OpenFiles:
    """Reads byte ranges of local files and keeps the most recently used files open; all threads may share it."""

    def __init__(self) -> None:
        self._opened = functools.lru_cache(maxsize=MAX_OPEN_FILES)(_OpenFile)

    def read(self, path: str, start: int, end: int) -> bytes:
        """Return bytes start:end of a file, or fewer if it ends earlier."""
        # The local reference keeps the file open even if another thread pushes it out of the cache meanwhile.
        file = self._opened(path)
        # pread uses no shared read position, so threads and forked workers don't disturb each other.
        return os.pread(file.descriptor, end - start, start)

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[()]]:
        return OpenFiles, ()  # a spawned worker does not have its parent's descriptors, so it starts without any


@dataclass(frozen=True, eq=False)
class ShardSource:
    """Images of tar shards, in the order of the shards' index."""

    shards: tuple[str, ...]
    """Path or url of each shard."""
    index: ShardIndex
    left_out: tuple[LeftOut, ...] = ()
    label_note: str = ""
    _files: OpenFiles = field(default_factory=OpenFiles, repr=False)

    @property
    def names(self) -> Sequence[str]:
        """Path of each image, relative to the folder that was packed."""
        return self.index.names

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class number of each image, or None."""
        return self.index.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class; empty without labels."""
        return self.index.class_names

    def __len__(self) -> int:
        return len(self.index.names)

    def name(self, index: int) -> str:
        """Return `shard:image`."""
        return f"{self.shards[self.index.members[0, index]]}:{self.index.names[index]}"

    def read(self, index: int) -> bytes:
        """Return the image's bytes.

        Raises:
            OSError: The shard is missing, cut or damaged, or the network failed.
            ValueError: The server ignores the byte range and sends the whole shard.

        """
        shard, offset, size, checksum = map(int, self.index.members[:, index])
        require_image_bytes(size)
        place = self.shards[shard]
        read = _read_range if is_url(place) else self._files.read
        raw = read(place, offset, offset + size)
        if len(raw) < size:
            raise OSError(f"the shard ends within this image: {len(raw)} of {size} bytes")
        if len(raw) > size:
            raise ValueError(f"data={place}: the server can't send a part of a file; copy the shards to this machine")
        if checksum >= 0 and zlib.crc32(raw) != checksum:
            raise OSError("damaged: the bytes are not those that were packed")
        return refuse_pointer(raw)


def open_shards(location: str) -> ShardSource:
    """Return a source of the images in shards of `mocokit pack`, or in WebDataset shards of other tools.

    If the index of `mocokit pack` lies beside the shards, only the index is read. Otherwise all headers are read,
    which for urls means that the whole shards are transferred. Of a WebDataset sample, the first image is used.

    Args:
        location: A folder that `mocokit pack` wrote, a pattern such as `train-{000..127}.tar`, or one `.tar` file;
            a path or a url.

    Raises:
        ValueError: No shards, no images, or the index belongs to other shards.
        OSError: The network or the disk failed.

    """
    if is_url(location):
        _require_protocol(location)
    else:
        location = str(Path(location).expanduser())
    if is_pattern(location) or location.endswith(".tar"):
        shards = expand_pattern(location)
        index = _find_index(shards[0].rpartition("/")[0])
        return ShardSource(tuple(shards), _matching(shards, index)) if index else index_shards(shards)
    folder = location.rstrip("/")
    index = _find_index(folder)
    if index is None:
        raise ValueError(
            f"data={location}: has no {INDEX_NAME} of `mocokit pack`; give a folder that has one, shards by a "
            "pattern such as train-{000..127}.tar, or one uncompressed .tar"
        )
    shards = [f"{folder}/{name}" for name in _packed_names(index)]
    return ShardSource(tuple(shards), _matching(shards, index))


def _packed_names(index: ShardIndex) -> list[str]:
    return [SHARD_NAME.format(number) for number in range(len(index.shard_bytes))]


def _find_index(folder: str) -> ShardIndex | None:
    place = f"{folder}/{INDEX_NAME}" if folder else INDEX_NAME
    if not is_url(place):
        return load_index(Path(place).read_bytes(), place) if Path(place).is_file() else None
    try:
        return load_index(_read_range(place, None, None), place)
    except (FileNotFoundError, PermissionError):  # without the right to list, stores answer "denied" for a missing file
        return None


def _matching(shards: Sequence[str], index: ShardIndex) -> ShardIndex:
    """Return `index`; raise ValueError unless it describes these shards, by name and size."""
    names = [shard.rpartition("/")[2] for shard in shards]
    expected = _packed_names(index)
    require(
        names == expected,
        "data",
        shards[0],
        f"{len(names)} shards up to {names[-1]}, but the {INDEX_NAME} beside them describes {len(expected)} up to "
        f"{expected[-1]}; name all of them, or move {INDEX_NAME} away",
    )
    # Of urls, only the last shard is checked, which an unfinished copy lacks; each check is a request.
    first = len(shards) - 1 if is_url(shards[0]) else 0
    for shard, expected_size in zip(shards[first:], index.shard_bytes[first:], strict=True):
        size = _size(shard)
        message = f"{size} bytes, but {INDEX_NAME} says {expected_size}; copy or pack it again"
        require(size in (expected_size, None), "data", shard, message)
    return index


def index_shards(shards: Sequence[str]) -> ShardSource:
    """Return a source of shards without an index, made from their headers.

    Raises:
        ValueError: One is no tar file, they hold no images, or they hold a split without a training part.

    """
    sizes = [_size(shard) or 0 for shard in shards]
    samples = []
    tally = LeftOutTally()
    for shard in shards:
        try:
            samples.append(_walk_remote(shard, tally) if is_url(shard) else _walk_local(shard, tally))
        except tarfile.TarError as error:
            raise ValueError(f"data={shard}: not a readable uncompressed tar file ({error})") from error
    found = f"; found: {', '.join(map(str, tally.result()))}" if tally.result() else ""
    require(any(samples), "data", shards[0], f"no images in {len(shards)} shards{found}")
    try:
        found_shards = index_samples(samples, sizes, tally)
    except ValueError as error:
        raise ValueError(f"data={shards[0]}: {error}") from error
    return ShardSource(tuple(shards), found_shards.index, left_out=tally.result(), label_note=found_shards.label_note)


def _walk_local(shard: str, tally: LeftOutTally) -> list[Sample]:
    refuse_pointer_file(Path(shard))
    with Path(shard).open("rb") as file:
        return walk_shard(file, mode="r:", tally=tally)


def _walk_remote(shard: str, tally: LeftOutTally) -> list[Sample]:
    """Return the samples of a shard behind a url; nothing is counted twice if the network fails in between."""

    def walk(files: Any, path: str) -> tuple[list[Sample], LeftOutTally]:
        """Read the whole shard, with a count of its own."""
        fresh = LeftOutTally()
        with files.open(path, "rb") as file:
            return walk_shard(file, mode="r|", tally=fresh), fresh

    samples, left_out = _retry(shard, walk)
    tally.update(left_out)
    return samples


def _size(shard: str) -> int | None:
    """Return the size of a shard in bytes, or None if the server does not tell it."""
    try:
        return _retry(shard, lambda files, path: files.size(path)) if is_url(shard) else Path(shard).stat().st_size
    except FileNotFoundError as error:
        raise ValueError(f"data={shard}: not found") from error


def _require_protocol(url: str) -> None:
    """Raise ValueError unless we read this scheme and its package is installed."""
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    require(scheme in SCHEMES, "data", url, f"not a url that mocokit reads; start it with one of {sorted(SCHEMES)}")
    try:
        url_to_fs(url)
    except (ImportError, ValueError) as error:  # the message names the package to install
        raise ValueError(f"data={url}: {error}") from error


def _read_range(url: str, start: int | None, end: int | None) -> bytes:
    """Return bytes start:end of a url; None: from its start, to its end."""
    return _retry(url, lambda files, path: bytes(files.cat_file(path, start=start, end=end)))


def _retry(url: str, operation: Callable[[Any, str], T]) -> T:
    """Return `operation(file system, path)` for a url; try again after each of WAITS_S if the network fails.

    fsspec keeps one file system per process, so a forked worker does not use its parent's connections.

    Raises:
        FileNotFoundError: Nothing at this url.
        PermissionError: Access denied; not tried again.
        OSError: The last attempt failed.

    """
    from fsspec.core import url_to_fs

    waits = iter(WAITS_S)
    while True:
        try:
            return operation(*url_to_fs(url))
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
        except _network_errors() as error:
            if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), url) from error
            wait_s = next(waits, None)
            if wait_s is None:
                raise OSError(f"{url}: {error}") from error
            time.sleep(wait_s)


def _network_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that mean a network error, for the packages that are loaded."""
    loaded = [(sys.modules[module], name) for module, name in _NETWORK_ERRORS.items() if module in sys.modules]
    return OSError, *(getattr(module, name) for module, name in loaded)
