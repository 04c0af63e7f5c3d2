"""Images in tar shards, here or behind a url, read in any order by byte range.

Everything that a url needs (fsspec, and s3fs, gcsfs or aiohttp below it) is imported when the first url is opened.
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

from mocokit.data.sources.limits import MAX_SHARDS, require_image_bytes
from mocokit.data.sources.shard_index import (
    INDEX_NAME,
    SHARD_NAME,
    Sample,
    ShardIndex,
    index_samples,
    load_index,
    walk_shard,
)

T = TypeVar("T")

MAX_OPEN_FILES = 256
"""A process: half of what small machines allow."""
WAITS_S = (0.5, 1.0, 2.0, 4.0)
"""Between the tries of a network that fails."""
SCHEMES = frozenset({"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "file", "memory"})
"""Of urls. fsspec has more, and chains of them: a `reference::` url renders templates out of a file it loads."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# What networks raise beside OSError; each class exists once its package is in use.
_NETWORK_ERRORS = {
    "aiohttp": "ClientError",
    "botocore.exceptions": "BotoCoreError",
    "gcsfs.retry": "HttpError",
    "google.auth.exceptions": "GoogleAuthError",
}


def is_url(location: str) -> bool:
    """Whether it is `scheme://...` rather than a path."""
    return "://" in location


def is_pattern(location: str) -> bool:
    """Whether it holds a range such as `{000..127}`."""
    return _RANGE.search(location) is not None


def expand_pattern(pattern: str) -> list[str]:
    """`a-{08..10}` -> a-08, a-09, a-10; several ranges give every combination."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    if int(last) < int(first):
        raise ValueError(f"data={pattern}: {found[0]} counts down; write the smaller number first")
    ends = expand_pattern(pattern[found.end() :])
    if (int(last) - int(first) + 1) * len(ends) > MAX_SHARDS:
        raise ValueError(f"data={pattern}: names more than {MAX_SHARDS:,} shards")
    starts = [f"{pattern[: found.start()]}{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return [start + end for start in starts for end in ends]


class _OpenFile:
    """A descriptor that is closed once nobody reads from it any more."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):  # it could be opened
            os.close(self.descriptor)


class OpenFiles:
    """Byte ranges of local files, the most recently used of which stay open, for all threads together."""

    def __init__(self) -> None:
        self._opened = functools.lru_cache(maxsize=MAX_OPEN_FILES)(_OpenFile)

    def read(self, path: str, start: int, end: int) -> bytes:
        """Bytes start:end; fewer when the file ends before."""
        file = self._opened(path)  # held here, so that it stays open although another thread may crowd it out
        return os.pread(file.descriptor, end - start, start)  # no position that a thread or forked worker could move

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[()]]:
        return OpenFiles, ()  # a spawned worker has none of its parent's descriptors


@dataclass(frozen=True, eq=False)
class ShardSource:
    """Images of tar shards, in the order of their index."""

    shards: tuple[str, ...]
    """Path or url of each shard."""
    index: ShardIndex
    _files: OpenFiles = field(default_factory=OpenFiles, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Path of each image, relative to what was packed."""
        return self.index.names

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class of each image, or None."""
        return self.index.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class; empty without labels."""
        return self.index.class_names

    def __len__(self) -> int:
        return len(self.index.names)

    def name(self, index: int) -> str:
        """Shard and image."""
        return f"{self.shards[self.index.members[0, index]]}:{self.index.names[index]}"

    def read(self, index: int) -> bytes:
        """The image's bytes.

        Raises:
            OSError: The shard is gone, cut or damaged.
            ValueError: The server sends whole shards only.

        """
        shard, offset, size, checksum = map(int, self.index.members[:, index])
        require_image_bytes(size)
        place = self.shards[shard]
        read = _read_range if is_url(place) else self._files.read
        raw = read(place, offset, offset + size)
        if len(raw) < size:
            raise OSError(f"the shard ends within it: {len(raw)} of {size} bytes")
        if len(raw) > size:
            raise ValueError(f"data={place}: the server can't send a part of a file; copy the shards to this machine")
        if checksum >= 0 and zlib.crc32(raw) != checksum:
            raise OSError("damaged: not the bytes that were packed")
        return raw


def open_shards(location: str) -> ShardSource:
    """What `mocokit pack` wrote, or WebDataset shards of other tools.

    With the index of `mocokit pack` beside the shards nothing else is read; without one their headers are, which for
    urls means the whole shards. Of a WebDataset sample, the first image counts.

    Args:
        location: The folder that was packed, a pattern such as `train-{000..127}.tar`, or one `.tar`; a path or a url.

    Raises:
        ValueError: Nothing there, no images, or shards that are not those of the index.
        OSError: The network or the disk failed.

    """
    if is_url(location):
        _require_protocol(location)
    else:
        location = str(Path(location).expanduser())
    if is_pattern(location) or location.endswith(".tar"):
        shards = expand_pattern(location)
        index = _find_index(shards[0].rpartition("/")[0])
        return ShardSource(tuple(shards), _agreed(shards, index) if index else _index_shards(shards))
    folder = location.rstrip("/")
    index = _find_index(folder)
    if index is None:
        raise ValueError(
            f"data={location}: no {INDEX_NAME} of `mocokit pack` there; give a folder that has one, shards by a "
            "pattern such as train-{000..127}.tar, or one uncompressed .tar"
        )
    shards = [f"{folder}/{name}" for name in _packed_names(index)]
    return ShardSource(tuple(shards), _agreed(shards, index))


def _packed_names(index: ShardIndex) -> list[str]:
    return [SHARD_NAME.format(number) for number in range(len(index.shard_bytes))]


def _find_index(folder: str) -> ShardIndex | None:
    place = f"{folder}/{INDEX_NAME}" if folder else INDEX_NAME
    if not is_url(place):
        return load_index(Path(place).read_bytes(), place) if Path(place).is_file() else None
    try:
        return load_index(_read_range(place, None, None), place)
    except (FileNotFoundError, PermissionError):  # stores say "denied" of an absent file to who may not list
        return None


def _agreed(shards: Sequence[str], index: ShardIndex) -> ShardIndex:
    """The index, if it is about these shards."""
    names = [shard.rpartition("/")[2] for shard in shards]
    expected = _packed_names(index)
    if names != expected:
        raise ValueError(
            f"data={shards[0]}: {len(names)} shards to {names[-1]}, but the {INDEX_NAME} beside them is about "
            f"{len(expected)} to {expected[-1]}; name them all, or move {INDEX_NAME} away"
        )
    first = len(shards) - 1 if is_url(shards[0]) else 0  # of urls only the last: a copy that stopped half-way lacks it
    for shard, said in zip(shards[first:], index.shard_bytes[first:], strict=True):
        size = _size(shard)
        if size not in (said, None):
            raise ValueError(f"data={shard}: {size} bytes, but {INDEX_NAME} says {said}; copy or pack it again")
    return index


def _index_shards(shards: Sequence[str]) -> ShardIndex:
    sizes = [_size(shard) or 0 for shard in shards]
    samples = []
    for shard in shards:
        try:
            samples.append(_ask(shard, _walk_remote) if is_url(shard) else _walk_local(shard))
        except tarfile.TarError as error:
            raise ValueError(f"data={shard}: not a readable uncompressed tar file ({error})") from error
    if not any(samples):
        raise ValueError(f"data={shards[0]}: no images in {len(shards)} shards")
    return index_samples(samples, sizes)


def _walk_local(shard: str) -> list[Sample]:
    with Path(shard).open("rb") as file:
        return walk_shard(file, mode="r:")


def _walk_remote(files: Any, path: str) -> list[Sample]:
    with files.open(path, "rb") as file:
        return walk_shard(file, mode="r|")


def _size(shard: str) -> int | None:
    """Bytes of a shard; None when the server does not say."""
    try:
        return _ask(shard, lambda files, path: files.size(path)) if is_url(shard) else Path(shard).stat().st_size
    except FileNotFoundError as error:
        raise ValueError(f"data={shard}: not found") from error


def _require_protocol(url: str) -> None:
    from fsspec.core import url_to_fs

    if url.partition("://")[0] not in SCHEMES:
        raise ValueError(f"data={url}: not a url that mocokit reads; it begins with one of {sorted(SCHEMES)}")
    try:
        url_to_fs(url)
    except (ImportError, ValueError) as error:  # a package to install, or a scheme that does not exist
        raise ValueError(f"data={url}: {error}") from error


def _read_range(url: str, start: int | None, end: int | None) -> bytes:
    return _ask(url, lambda files, path: bytes(files.cat_file(path, start=start, end=end)))


def _ask(url: str, question: Callable[[Any, str], T]) -> T:
    """Ask the file system of a url, again while its network fails.

    fsspec keeps a file system a process, so the question of a forked worker goes to one of its own.
    """
    from fsspec.core import url_to_fs

    waits = iter(WAITS_S)
    while True:
        try:
            return question(*url_to_fs(url))
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
    loaded = [(sys.modules[module], name) for module, name in _NETWORK_ERRORS.items() if module in sys.modules]
    return OSError, *(getattr(module, name) for module, name in loaded)
