"""Sources that read images inside a zip or tar file. Nothing is unpacked to disk, so no member can leave its folder."""

import os
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from mocokit.data.sources.limits import ARCHIVE_ERRORS, require_entries, require_image_bytes
from mocokit.data.sources.sources import is_image_name, labels_from_names
from mocokit.data.sources.tar_members import damage_as_tar_error, regular_members
from mocokit.settings import require

_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compression methods that zipfile unpacks only as far as asked; bzip2 and lzma can unpack 1 GB in one call."""


@dataclass(frozen=True, eq=False)
class ZipSource:
    """Images of a zip file."""

    path: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    _handles: dict[int, zipfile.ZipFile] = field(default_factory=dict, repr=False)
    """Open file of each process id; a handle shared with a forked worker would share its read position."""

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handles": {}}  # open files can't be pickled for a spawned worker

    def name(self, index: int) -> str:
        """Return `archive:member`."""
        return f"{self.path}:{self.names[index]}"

    def read(self, index: int) -> bytes:
        """Return the member's bytes.

        Raises:
            OSError: Damaged, encrypted, larger than MAX_IMAGE_BYTES, or compressed by another method than deflate.

        """
        if os.getpid() not in self._handles:
            self._handles[os.getpid()] = zipfile.ZipFile(self.path)
        archive = self._handles[os.getpid()]
        member = archive.getinfo(self.names[index])
        require_image_bytes(member.file_size)
        if member.compress_type not in _BOUNDED:
            raise OSError("compressed by a method other than deflate; pack the zip file again")
        try:
            with archive.open(member) as file:
                raw = file.read(member.file_size)  # no more than the header says, although it may lie
        except ARCHIVE_ERRORS as error:  # damaged or encrypted
            raise OSError(str(error)) from error
        if len(raw) < member.file_size:
            raise OSError(f"the archive ends within this image: {len(raw)} of {member.file_size} bytes")
        return raw


def open_zip(path: Path) -> ZipSource:
    """Return a source of a zip file's images, sorted by name.

    Raises:
        ValueError: Not a zip file, or one without images.

    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = tuple(sorted(name for name in archive.namelist() if is_image_name(name)))
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"data={path}: not a readable zip file ({error})") from error
    require(bool(names), "data", path, "no images in this zip file")
    require_entries(len(names), path)
    return ZipSource(path, names, *labels_from_names(names))


@dataclass(frozen=True, eq=False)
class TarSource:
    """Images of an uncompressed tar file, read at the offsets that were found when it was opened."""

    path: Path
    names: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    """(offset, size) of each image's data, in bytes."""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return `archive:member`."""
        return f"{self.path}:{self.names[index]}"

    def read(self, index: int) -> bytes:
        """Return the member's bytes; raise OSError if the archive was cut or the image exceeds MAX_IMAGE_BYTES."""
        offset, size = self.spans[index]
        require_image_bytes(size)
        with self.path.open("rb") as file:
            file.seek(offset)
            raw = file.read(size)
        if len(raw) < size:
            raise OSError(f"the archive ends within this image: {len(raw)} of {size} bytes")
        return raw


def open_tar(path: Path) -> TarSource:
    """Return a source of an uncompressed tar file's images, sorted by name; all headers are read once.

    Raises:
        ValueError: Not an uncompressed tar file, damaged, or without images.

    """
    try:
        with damage_as_tar_error(), tarfile.open(path, "r:") as archive:
            members = sorted(
                (member.name, member.offset_data, member.size)
                for member in regular_members(archive)
                if is_image_name(member.name)
            )
    except tarfile.TarError as error:
        raise ValueError(
            f"data={path}: not a readable uncompressed tar file ({error}); unpack a compressed one with gunzip: "
            "images must be read in any order, and they are compressed already"
        ) from error
    require(bool(members), "data", path, "no images in this tar file")
    names = tuple(name for name, _, _ in members)
    spans = tuple((offset, size) for _, offset, size in members)
    return TarSource(path, names, spans, *labels_from_names(names))
