"""What lies where in a set of tar shards: written by `mocokit pack`, or found by walking shards of other tools.

The file is a numpy archive of plain arrays: small, loaded in one go, and nothing that could run code.
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
"""In place of a checksum or a label that there is none of."""


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The images of a set of shards, in the order of the data that was packed."""

    names: tuple[str, ...]
    """Path of each image, relative to wherever it is unpacked."""
    members: NDArray[np.int64]
    """(4, N): shard, offset in it, size, and CRC-32 or UNKNOWN."""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    shard_bytes: tuple[int, ...]
    """Size of each shard."""

    def save(self, file: IO[bytes]) -> None:
        """Write it; `load_index` reads it back."""
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
    """One array of bytes; a path can hold any character but NUL, and need not be valid UTF-8."""
    return np.frombuffer("\0".join(texts).encode("utf-8", "surrogateescape"), np.uint8)


def _split(joined: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(joined.tobytes().decode("utf-8", "surrogateescape").split("\0")) if joined.size else ()


def load_index(raw: bytes, place: str) -> ShardIndex:
    """The index in the bytes of the file `place`.

    Raises:
        ValueError: Damaged, of a newer format, or at odds with itself.

    """
    try:
        _refuse_bomb(raw)
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
        _check(index)
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"data={place}: not an index that can be used ({error}); pack the images again") from error
    return index


def _refuse_bomb(raw: bytes) -> None:
    """ValueError when the arrays would unpack to far more than any index does."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > MAX_INDEX_RATIO * len(raw) + 2**20:
        raise ValueError(f"{len(raw)} bytes that unpack to {unpacked}")


def _check(index: ShardIndex) -> None:
    """ValueError unless every image lies within a shard and has a class that exists."""
    if index.members.dtype != np.int64 or index.members.shape != (4, len(index.names)) or not index.names:
        raise ValueError("its parts differ in length")
    shard, offset, size, _ = index.members
    if shard.min() < 0 or shard.max() >= len(index.shard_bytes):
        raise ValueError("it names a shard that does not exist")
    if offset.min() < 0 or size.min() < 0 or (offset > np.array(index.shard_bytes)[shard] - size).any():
        raise ValueError("an image lies outside its shard")
    if sum(size.tolist()) > sum(index.shard_bytes):
        raise ValueError("its images lie over each other")
    labels = index.labels or (0,) * len(index.names)
    if len(labels) != len(index.names) or min(labels) < 0 or max(labels) >= max(1, len(index.class_names)):
        raise ValueError("its labels don't fit its images and classes")


@dataclass(frozen=True)
class Sample:
    """The first image of a WebDataset sample."""

    name: str
    offset: int
    size: int
    class_text: str | None
    """What its `.cls` file says."""


def walk_shard(file: IO[bytes], *, mode: Literal["r:", "r|"]) -> list[Sample]:
    """The samples of a tar file by its headers.

    Members whose paths agree up to the first dot of the file name are one sample.

    Args:
        file: The uncompressed tar file.
        mode: "r:" jumps from header to header, "r|" reads on without ever going back.

    Raises:
        tarfile.TarError: Not an uncompressed tar file, or cut.

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
    """An index of shards that came without one, in the order of the shards and of the samples in each.

    Classes are what the `.cls` files say when every sample has one, otherwise the class folders, if any.
    """
    numbered = [(shard, sample) for shard, samples in enumerate(samples_of) for sample in samples]
    names = tuple(sample.name for _, sample in numbered)
    classes = [sample.class_text for _, sample in numbered if sample.class_text is not None]
    if len(classes) == len(names):
        padded = [text.zfill(5) if text.isdecimal() else text for text in classes]  # sorted as numbers
        labels: tuple[int, ...] | None
        labels, class_names = label_ids(padded)
    else:
        labels, class_names = labels_from_names(names)
    if len(set(names)) < len(names):  # each shard may number its own from 0
        names = tuple(f"{shard:05d}/{sample.name}" for shard, sample in numbered)
    members = np.array([(shard, sample.offset, sample.size, UNKNOWN) for shard, sample in numbered], np.int64)
    return ShardIndex(names, np.ascontiguousarray(members.T), labels, class_names, tuple(shard_bytes))
