"""Images inside a zip or tar file, read in place: nothing is unpacked, so no path in it can escape."""

import os
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from mocokit.data.sources.limits import ARCHIVE_ERRORS, MAX_IMAGE_BYTES, require_entries, require_image_bytes
from mocokit.data.sources.sources import is_image_name, labels_from_names
from mocokit.data.sources.tar_members import damage_as_tar_error, regular_members

_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Methods that Python unpacks no further than asked; of bzip2 and lzma it unpacks 1 GB at a blow."""


@dataclass(frozen=True, eq=False)
class ZipSource:
    """Image members of a zip file."""

    path: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    max_bytes: int
    _handles: dict[int, zipfile.ZipFile] = field(default_factory=dict, repr=False)  # one a process

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Archive and member."""
        return f"{self.path}:{self.names[index]}"

    def read(self, index: int) -> bytes:
        """The member's bytes; OSError when it is damaged, encrypted or absurdly large."""
        if os.getpid() not in self._handles:  # a handle shared with a forked worker would share its position
            self._handles[os.getpid()] = zipfile.ZipFile(self.path)
        archive = self._handles[os.getpid()]
        member = archive.getinfo(self.names[index])
        if member.file_size > self.max_bytes:
            raise OSError(f"{member.file_size} bytes unpacked, more than {self.max_bytes}")
        if member.compress_type not in _BOUNDED:
            raise OSError("packed by a method other than deflate; pack the zip file again")
        try:
            with archive.open(member) as file:
                raw = file.read(member.file_size)  # without a number, all that it unpacks to, whatever the header says
        except ARCHIVE_ERRORS as error:  # damaged or encrypted
            raise OSError(str(error)) from error
        if len(raw) < member.file_size:
            raise OSError(f"the archive ends within it: {len(raw)} of {member.file_size} bytes")
        return raw


def open_zip(path: Path, *, max_bytes: int = MAX_IMAGE_BYTES) -> ZipSource:
    """A zip file's images, sorted by name; members over `max_bytes` are bad images."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = tuple(sorted(name for name in archive.namelist() if is_image_name(name)))
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"data={path}: not a readable zip file ({error})") from error
    if not names:
        raise ValueError(f"data={path}: no images in this zip file")
    require_entries(len(names), path)
    return ZipSource(path, names, *labels_from_names(names), max_bytes=max_bytes)


@dataclass(frozen=True, eq=False)
class TarSource:
    """Image members of an uncompressed tar file, by offset."""

    path: Path
    names: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    """(offset, size) of each member's data."""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Archive and member."""
        return f"{self.path}:{self.names[index]}"

    def read(self, index: int) -> bytes:
        """The member's bytes; OSError when the archive ends within it or it is absurdly large."""
        offset, size = self.spans[index]
        require_image_bytes(size)
        with self.path.open("rb") as file:
            file.seek(offset)
            raw = file.read(size)
        if len(raw) < size:
            raise OSError(f"the archive ends within it: {len(raw)} of {size} bytes")
        return raw


def open_tar(path: Path) -> TarSource:
    """A tar file's images, sorted by name; its headers are scanned once."""
    try:
        with damage_as_tar_error(), tarfile.open(path, "r:") as archive:
            members = sorted(
                (member.name, member.offset_data, member.size)
                for member in regular_members(archive)
                if is_image_name(member.name)
            )
    except tarfile.TarError as error:
        raise ValueError(
            f"data={path}: not a readable uncompressed tar file ({error}); unpack a compressed one with gunzip, "
            "since images are compressed already and must be read in any order"
        ) from error
    if not members:
        raise ValueError(f"data={path}: no images in this tar file")
    names = tuple(name for name, _, _ in members)
    spans = tuple((offset, size) for _, offset, size in members)
    return TarSource(path, names, spans, *labels_from_names(names))
