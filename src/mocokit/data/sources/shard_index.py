"""The index of a set of tar shards: shard, offset and size of each image.

`mocokit pack` writes it as a file. For shards of other tools, webdataset.py builds it from their headers. The file is
a numpy archive of plain arrays: it is small, is loaded at once, and can't run code.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.limits import ARCHIVE_ERRORS, MAX_INDEX_RATIO
from mocokit.data.sources.names import Names, join_names

INDEX_NAME = "shard-index.npz"
SHARD_NAME = "shard-{:05d}.tar"
FORMAT = 1
UNKNOWN = -1
"""Stands for a checksum that is not known."""


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Names, places and labels of the N images in a set of shards, in the order in which they were packed."""

    names: Sequence[str]
    """Path of each image, relative to the folder that is unpacked into."""
    members: NDArray[np.int64]
    """(4, N): number of the shard, offset in bytes, size in bytes, and CRC-32 or UNKNOWN."""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    shard_bytes: tuple[int, ...]
    """Size of each shard, in bytes."""

    def save(self, file: IO[bytes]) -> None:
        """Write the index as an .npz file; `load_index` reads it."""
        np.savez_compressed(
            file,
            format=np.array(FORMAT),
            names=np.frombuffer(join_names(self.names), np.uint8),
            members=self.members,
            labels=np.array(self.labels or (), np.int64),
            class_names=np.frombuffer(join_names(self.class_names), np.uint8),
            shard_bytes=np.array(self.shard_bytes, np.int64),
        )


def load_index(raw: bytes, place: str) -> ShardIndex:
    """Return the index that a file holds.

    Args:
        raw: Bytes of the file.
        place: Path or url of the file, for messages.

    Raises:
        ValueError: Damaged, of another format version, or inconsistent.

    """
    try:
        _require_sane_size(raw)
        with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
            if int(arrays["format"]) != FORMAT:
                raise ValueError(f"format {int(arrays['format'])}, this mocokit reads {FORMAT}; use a newer mocokit")
            index = ShardIndex(
                names=Names.split(arrays["names"]),
                members=arrays["members"],
                labels=tuple(arrays["labels"].tolist()) or None,
                class_names=tuple(Names.split(arrays["class_names"])),
                shard_bytes=tuple(arrays["shard_bytes"].tolist()),
            )
        _require_consistent(index)
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"data={place}: not a usable index ({error}); pack the images again") from error
    return index


def _require_sane_size(raw: bytes) -> None:
    """Raise ValueError if the file would unpack to more than 1 MiB and MAX_INDEX_RATIO times its size (a zip bomb)."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > MAX_INDEX_RATIO * len(raw) + 2**20:
        raise ValueError(f"{len(raw)} bytes that unpack to {unpacked}")


def _require_consistent(index: ShardIndex) -> None:
    """Raise ValueError unless every image lies within an existing shard and has an existing class."""
    if index.members.dtype != np.int64 or index.members.shape != (4, len(index.names)) or not index.names:
        raise ValueError("its parts differ in length")
    shard, offset, size, _ = index.members
    if shard.min() < 0 or shard.max() >= len(index.shard_bytes):
        raise ValueError("it names a shard that does not exist")
    # `shard_bytes - size` and not `offset + size`, which can overflow int64.
    if offset.min() < 0 or size.min() < 0 or (offset > np.array(index.shard_bytes)[shard] - size).any():
        raise ValueError("an image lies outside its shard")
    if sum(size.tolist()) > sum(index.shard_bytes):
        raise ValueError("its images overlap")
    labels = index.labels or (0,) * len(index.names)
    if len(labels) != len(index.names) or min(labels) < 0 or max(labels) >= max(1, len(index.class_names)):
        raise ValueError("its labels don't fit its images and classes")
