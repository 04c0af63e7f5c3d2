"""Source of the images inside a zip file. Nothing is unpacked to disk, so no member can leave its folder."""

import os
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from mocokit.data.sources.layout import Layout, read_layout
from mocokit.data.sources.left_out import LeftOut, LeftOutTally
from mocokit.data.sources.limits import ARCHIVE_ERRORS, refuse_pointer, require_entries, require_image_bytes
from mocokit.data.sources.names import Names
from mocokit.data.sources.suffixes import is_image_name

_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compression methods that zipfile unpacks only as far as asked; bzip2 and lzma can unpack 1 GB in one call."""


@dataclass(frozen=True, eq=False)
class ZipSource:
    """Images of a zip file."""

    path: Path
    names: Sequence[str]
    places: tuple[int, ...]
    """Number of each image's entry in the zip file's directory; two entries may have one name."""
    facts: tuple[tuple[int, int], ...]
    """(size in bytes, CRC-32) of each image, as the directory tells."""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    label_note: str = ""
    test_part: str = ""
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
            OSError: Damaged, encrypted, larger than MAX_IMAGE_BYTES, a git-lfs pointer, compressed by another method
                than deflate, or the archive was replaced since it was opened.

        """
        if os.getpid() not in self._handles:
            self._handles[os.getpid()] = zipfile.ZipFile(self.path)
        archive = self._handles[os.getpid()]
        entries = archive.infolist()
        if self.places[index] >= len(entries) or member_name(entries[self.places[index]]) != self.names[index]:
            raise OSError("the archive was replaced since it was opened")
        member = entries[self.places[index]]
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
        return refuse_pointer(raw)


def open_zip(path: Path, inside: str = "") -> ZipSource:
    """Return a source of a zip file's images, sorted by name.

    Args:
        path: The zip file.
        inside: Folder in it to which the images are restricted; empty: all.

    Raises:
        ValueError: Not a zip file, or one without images.

    """
    tally = LeftOutTally()
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # A stable sort: of two entries with one name, the earlier one comes first.
            found = sorted(_images(entries, inside, tally), key=lambda place: member_name(entries[place]))
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"data={path}: not a readable zip file ({error})") from error
    names = tuple(member_name(entries[place]) for place in found)
    layout = archive_layout(path, names, tally, inside=inside, kind="zip file")
    used = keep_places(names, layout)
    return ZipSource(
        path=path,
        names=Names(layout.names),
        places=tuple(found[row] for row in used),
        facts=tuple((entries[found[row]].file_size, entries[found[row]].CRC) for row in used),
        labels=layout.labels,
        class_names=layout.class_names,
        left_out=tally.result(),
        label_note=layout.note,
        test_part=test_part_of(path, layout),
    )


def _images(entries: list[zipfile.ZipInfo], inside: str, tally: LeftOutTally) -> list[int]:
    """Return the numbers of the entries that are images below `inside`; count the other ones in `tally`."""
    found = []
    for number, entry in enumerate(entries):
        name = member_name(entry)
        if entry.is_dir() or name.endswith("/") or not is_inside(name, inside):
            continue
        if not is_image_name(name):
            tally.add_file(name)
        elif stat.S_ISLNK(entry.external_attr >> 16):
            tally.add("links", name, "stored as links; zip the files themselves, without -y", lost=True)
        else:
            found.append(number)
    return found


def member_name(entry: zipfile.ZipInfo) -> str:
    r"""Return the path of an entry with `/` between folders; some programs on Windows write `\`, against the format."""
    return entry.filename if "/" in entry.filename else entry.filename.replace("\\", "/")


def is_inside(name: str, folder: str) -> bool:
    """Return True if a member of an archive lies below `folder`; empty: always."""
    parts = PurePosixPath(folder).parts
    return PurePosixPath(name).parts[: len(parts)] == parts


def archive_layout(path: Path, names: tuple[str, ...], tally: LeftOutTally, *, inside: str, kind: str) -> Layout:
    """Return the layout of an archive's images.

    Raises:
        ValueError: No images, too many, or a split without a training part.

    """
    if not names:
        place = f"below {inside} in this {kind}" if inside else f"in this {kind}"
        found = f"; found: {', '.join(map(str, tally.result()))}" if tally.result() else ""
        raise ValueError(f"data={path}: no images {place}{found}")
    require_entries(len(names), path)
    try:
        layout = read_layout(names, tally)
    except ValueError as error:
        raise ValueError(f"data={path}: {error}") from error
    tally.forget_twins(names)
    repeated = len(names) - len(set(names))
    if not repeated:
        return layout
    note = f"names repeated: {repeated:,}, each counts as an image"
    return replace(layout, note=f"{layout.note}; {note}" if layout.note else note)


def keep_places(names: tuple[str, ...], layout: Layout) -> list[int]:
    """Return the positions in `names` of the images that the layout uses, which are in the same order."""
    if len(layout.names) == len(names):
        return list(range(len(names)))
    used = set(layout.names)
    return [row for row, name in enumerate(names) if name in used]


def test_part_of(path: Path, layout: Layout) -> str:
    """Return the location of the images to test on: a folder in the archive; empty without one."""
    return f"{path}/{layout.test_part}" if layout.test_part else ""
