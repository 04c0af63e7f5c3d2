"""Write tar shards safely: a file that has its final name is complete."""

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
from mocokit.data.sources.suffixes import readable_suffixes

_TAR_END = bytes(2 * tarfile.BLOCKSIZE)


class ShardWriter:
    """Writes shards and other files into a folder, under temporary names until `publish` renames them.

    As a context manager, it removes the files that were not published.

    Args:
        folder: Existing folder to write into.
        max_bytes: Maximal size of a shard, unless one image alone is larger.

    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._images: list[str] = []
        self._members = array("q")  # shard, offset, size and CRC-32 of each image, flat: 32 bytes an image
        self._labels: list[int] = []
        self._shard_bytes: list[int] = []
        self._shard: IO[bytes] | None = None
        self._files: list[str] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_exception: object) -> None:
        """Remove the files that were not published."""
        if self._shard is not None:
            with contextlib.suppress(OSError):  # on a full disk closing fails too; the first error is on its way
                self._shard.close()
        for name in self._files:
            self._partial(name).unlink(missing_ok=True)

    def add(self, number: int, name: str, raw: bytes, *, label: int | None) -> None:
        """Append an image, and its label if it has one, to the current shard or, if that is full, to a new one.

        Args:
            number: Index of the image in the source; its member's name.
            name: Path of the image for the index.
            raw: Bytes of the image file.
            label: Class number, or None.

        """
        key = f"{number:09d}"
        suffix = PurePosixPath(name).suffix.lower()
        member_suffix = suffix if suffix in readable_suffixes() else ".jpg"  # files of a list may have any suffix
        sample = _tar_member(key + member_suffix, raw)
        if label is not None:
            sample += _tar_member(f"{key}.cls", str(label).encode())
            self._labels.append(label)
        if self._shard is None or self._shard_bytes[-1] + len(sample) + len(_TAR_END) > self.max_bytes:
            self._end_shard()
            self._shard_bytes.append(0)
            self._shard = self._open(self._shard_name)
        with naming_path(self._partial(self._shard_name)):
            self._shard.write(sample)
        shard = len(self._shard_bytes) - 1
        offset = self._shard_bytes[-1] + tarfile.BLOCKSIZE  # the image's bytes follow its header, one block
        self._members.extend((shard, offset, len(raw), zlib.crc32(raw)))
        self._shard_bytes[-1] += len(sample)
        self._images.append(name)

    def index(self, class_names: tuple[str, ...]) -> ShardIndex:
        """End the last shard, and return the index of all shards."""
        self._end_shard()
        members = np.array(self._members, np.int64).reshape(-1, 4).T
        labels = tuple(self._labels) or None
        return ShardIndex(
            tuple(self._images), np.ascontiguousarray(members), labels, class_names, tuple(self._shard_bytes)
        )

    def write(self, name: str, save: Callable[[IO[bytes]], object]) -> None:
        """Write another file by `save(file)`, under a temporary name too."""
        with naming_path(self._partial(name)), self._open(name) as file:
            save(file)
            _flush(file)

    def publish(self) -> None:
        """Give every file its final name, in the order of writing: the index, written last, comes last."""
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
    """Return a tar member: a header of one block, then the bytes, padded to whole blocks."""
    member = tarfile.TarInfo(name)  # its time stays 1970, so that equal images give equal shards
    member.size = len(raw)
    return member.tobuf(tarfile.USTAR_FORMAT) + raw + bytes(-len(raw) % tarfile.BLOCKSIZE)


def _flush(file: IO[bytes]) -> None:
    """Wait until the file's bytes are on the disk, so that a crash can't leave a renamed but empty file."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def naming_path(path: Path) -> Iterator[None]:
    """Context manager that adds `path` to an OSError; errors of writes to an open file don't name it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
