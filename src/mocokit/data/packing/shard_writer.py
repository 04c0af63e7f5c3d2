"""Writes tar shards so that what has its final name is complete."""

import contextlib
import os
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from mocokit.data.sources.shard_index import SHARD_NAME, ShardIndex
from mocokit.data.sources.sources import IMAGE_SUFFIXES

_TAR_END = bytes(2 * tarfile.BLOCKSIZE)


class ShardWriter:
    """Writes shards and other files into a folder, under temporary names until `publish`.

    Args:
        folder: Where; it must exist.
        max_bytes: A shard ends before the image that would make it larger.

    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._images: list[str] = []
        self._members = array("q")  # shard, offset, size and CRC-32 of each image
        self._labels: list[int] = []
        self._shard_bytes: list[int] = []
        self._shard: IO[bytes] | None = None
        self._files: list[str] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_exception: object) -> None:
        """Remove what was not published."""
        if self._shard is not None:
            with contextlib.suppress(OSError):  # a full disk, reported already
                self._shard.close()
        for name in self._files:
            self._partial(name).unlink(missing_ok=True)

    def add(self, number: int, name: str, raw: bytes, *, label: int | None) -> None:
        """Write image `number` of the source, in a shard with its label."""
        key = f"{number:09d}"
        suffix = PurePosixPath(name).suffix.lower()
        sample = _tar_member(key + (suffix if suffix in IMAGE_SUFFIXES else ".jpg"), raw)  # lists name what they like
        if label is not None:
            sample += _tar_member(f"{key}.cls", str(label).encode())
            self._labels.append(label)
        if self._shard is None or self._shard_bytes[-1] + len(sample) + len(_TAR_END) > self.max_bytes:
            self._end_shard()
            self._shard_bytes.append(0)
            self._shard = self._open(self._shard_name)
        with naming_path(self._partial(self._shard_name)):
            self._shard.write(sample)
        shard = len(self._shard_bytes) - 1  # behind its header
        offset = self._shard_bytes[-1] + tarfile.BLOCKSIZE
        self._members.extend((shard, offset, len(raw), zlib.crc32(raw)))
        self._shard_bytes[-1] += len(sample)
        self._images.append(name)

    def index(self, class_names: tuple[str, ...]) -> ShardIndex:
        """End the last shard and say what lies where."""
        self._end_shard()
        members = np.array(self._members, np.int64).reshape(-1, 4).T
        labels = tuple(self._labels) or None
        return ShardIndex(
            tuple(self._images), np.ascontiguousarray(members), labels, class_names, tuple(self._shard_bytes)
        )

    def write(self, name: str, save: Callable[[IO[bytes]], object]) -> None:
        """Write a file that is no shard."""
        with naming_path(self._partial(name)), self._open(name) as file:
            save(file)
            _flush(file)

    def publish(self) -> None:
        """Give every file its name, in the order of writing."""
        for name in self._files:
            self._partial(name).replace(self.folder / name)

    @property
    def _shard_name(self) -> str:
        return SHARD_NAME.format(len(self._shard_bytes) - 1)

    def _partial(self, name: str) -> Path:
        return self.folder / f"{name}.partial"

    def _open(self, name: str) -> IO[bytes]:
        self._files.append(name)
        return self._partial(name).open("xb")

    def _end_shard(self) -> None:
        if self._shard is None:
            return
        with naming_path(self._partial(self._shard_name)), self._shard:
            self._shard.write(_TAR_END)
            _flush(self._shard)
        self._shard_bytes[-1] += len(_TAR_END)


def _tar_member(name: str, raw: bytes) -> bytes:
    """One block of header, then the bytes, filled up to whole blocks."""
    member = tarfile.TarInfo(name)  # of the year 1970, so that equal images give equal shards
    member.size = len(raw)
    return member.tobuf(tarfile.USTAR_FORMAT) + raw + bytes(-len(raw) % tarfile.BLOCKSIZE)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def naming_path(path: Path) -> Iterator[None]:
    """Let the error of a write, which knows no more than a file descriptor, tell the path."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
