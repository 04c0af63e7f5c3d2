"""The index of a set of tar shards: shard, offset and size of each image.

`mocokit pack` writes it as a file. For shards of other tools it is built by reading their headers. The file is a numpy
archive of plain arrays: it is small, is loaded at once, and can't run code.
"""

import io
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.limits import ARCHIVE_ERRORS, MAX_INDEX_RATIO
from mocokit.data.sources.sources import is_image_name, label_ids, labels_from_names
from mocokit.data.sources.tar_members import damage_as_tar_error, regular_members

INDEX_NAME = "shard-index.npz"
SHARD_NAME = "shard-{:05d}.tar"
FORMAT = 1
UNKNOWN = -1
"""Stands for a checksum that is not known."""


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Names, places and labels of the N images in a set of shards, in the order in which they were packed."""

    names: tuple[str, ...]
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
            names=_join(self.names),
            members=self.members,
            labels=np.array(self.labels or (), np.int64),
            class_names=_join(self.class_names),
            shard_bytes=np.array(self.shard_bytes, np.int64),
        )


def _join(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Return the texts as one array of bytes, with NUL between them: the one character that no path holds.

    A path need not be valid UTF-8, thus surrogateescape.
    """
    return np.frombuffer("\0".join(texts).encode("utf-8", "surrogateescape"), np.uint8)


def _split(joined: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(joined.tobytes().decode("utf-8", "surrogateescape").split("\0")) if joined.size else ()


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
                names=_split(arrays["names"]),
                members=arrays["members"],
                labels=tuple(arrays["labels"].tolist()) or None,
                class_names=_split(arrays["class_names"]),
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


@dataclass(frozen=True)
class Sample:
    """The first image of a WebDataset sample: its path in the shard, and offset and size in bytes."""

    name: str
    offset: int
    size: int
    class_text: str | None
    """Content of the sample's `.cls` file; None without one."""


def walk_shard(file: IO[bytes], *, mode: Literal["r:", "r|"]) -> list[Sample]:
    """Return the samples of a WebDataset shard that hold an image, by reading its headers.

    Members whose paths are equal up to the first dot of the file name form one sample.

    Args:
        file: The uncompressed tar file.
        mode: "r:" seeks from header to header; "r|" reads the whole file in order, as a stream.

    Raises:
        tarfile.TarError: Not an uncompressed tar file, or damaged.

    """
    images: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, str] = {}
    with damage_as_tar_error(), tarfile.open(fileobj=file, mode=mode) as archive:
        for member in regular_members(archive):
            folder, _, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            key = f"{folder}/{stem}"
            if is_image_name(member.name):
                images.setdefault(key, (member.name, member.offset_data, member.size))
            elif extension == "cls" and (content := archive.extractfile(member)):
                classes[key] = content.read(1000).decode("utf-8", "replace").strip()
    return [Sample(*image, classes.get(key)) for key, image in images.items()]


def index_samples(samples_of: Sequence[Sequence[Sample]], shard_bytes: Sequence[int]) -> ShardIndex:
    """Return the index of shards that came without one, in the order of shards and of the samples in each.

    Classes come from the `.cls` files if every sample has one, otherwise from class folders, if there are any.

    Args:
        samples_of: Samples of each shard.
        shard_bytes: Size of each shard.

    """
    numbered = [(shard, sample) for shard, samples in enumerate(samples_of) for sample in samples]
    names = tuple(sample.name for _, sample in numbered)
    classes = [sample.class_text for _, sample in numbered if sample.class_text is not None]
    if len(classes) == len(names):
        padded = [text.zfill(5) if text.isdecimal() else text for text in classes]  # so that 9 sorts before 10
        labels: tuple[int, ...] | None
        labels, class_names = label_ids(padded)
    else:
        labels, class_names = labels_from_names(names)
    if len(set(names)) < len(names):  # each shard may count its images from 0
        names = tuple(f"{shard:05d}/{sample.name}" for shard, sample in numbered)
    members = np.array([(shard, sample.offset, sample.size, UNKNOWN) for shard, sample in numbered], np.int64)
    return ShardIndex(names, np.ascontiguousarray(members.T), labels, class_names, tuple(shard_bytes))
