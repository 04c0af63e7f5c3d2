"""Read the headers of a tar file, safely even if they are damaged or forged."""

import posixpath
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from mocokit.data.sources.left_out import LeftOutTally
from mocokit.data.sources.limits import ARCHIVE_ERRORS, MAX_ENTRIES
from mocokit.data.sources.suffixes import is_image_name

MAX_PADDING = 2**20
"""Bytes behind an archive's end that are looked at. tar pads with zeros to a multiple of 10,240, some to 512 KiB."""

MAX_LINKS = 40
"""Links that lead to a link, one after the other, before they count as a loop; as in Linux."""

_OUTSIDE = "their target is not an image in the archive"


@contextmanager
def damage_as_tar_error() -> Iterator[None]:
    """Context manager that turns any exception of tarfile on a damaged header into a TarError."""
    try:
        yield
    except tarfile.TarError:
        raise
    except ARCHIVE_ERRORS as error:
        raise tarfile.ReadError(str(error) or type(error).__name__) from error


def safe_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield every member of an archive in order, whatever its kind.

    Raises:
        tarfile.TarError: Damaged, more than MAX_ENTRIES members, or an offset that does not grow.

    """
    last_offset = -1
    with damage_as_tar_error():
        for count, member in enumerate(archive):
            if count >= MAX_ENTRIES:
                raise tarfile.ReadError(f"more than {MAX_ENTRIES:,} members")
            if member.offset <= last_offset or member.size < 0:  # would loop forever
                raise tarfile.ReadError("a member's header points back to an earlier offset")
            last_offset = member.offset
            yield member
            # tarfile keeps every header, and each can hold a copy of the archive's global header: free them.
            archive.members.clear()  # type: ignore[attr-defined]


def tell_rest(archive: tarfile.TarFile, file: IO[bytes], tally: LeftOutTally) -> None:
    """Count in `tally` a second archive behind the end of the first, as `cat a.tar b.tar` makes; tar reads none either.

    Args:
        archive: The archive, read to its end.
        file: The file that it is in.
        tally: Counts what is left out.

    """
    file.seek(archive.offset)
    rest = file.read(MAX_PADDING).lstrip(b"\0")
    if rest:
        why = "one archive was appended to another; give each of them, or put them together by tar --concatenate"
        tally.add("tar files behind the end of the first", getattr(file, "name", "") or "the rest", why, lost=True)


def has_data(member: tarfile.TarInfo) -> bool:
    """Return True for a regular file whose bytes follow its header: no link, device or sparse file."""
    return member.isreg() and not member.issparse()


def link_target(member: tarfile.TarInfo) -> str | None:
    """Return the name of the member that a link leads to; None for no link, or one that leads out of the archive.

    A hard link names its target from the archive's top, a symbolic link from its own folder.
    """
    if member.islnk():
        return posixpath.normpath(member.linkname)
    if member.issym() and not member.linkname.startswith("/"):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
        return None if target.startswith("..") else target
    return None


@dataclass
class TarImages:
    """The images that a tar file holds, and how links in it lead to them."""

    found: list[tuple[str, int, int]] = field(default_factory=list)
    """(name, offset, size) of each image, in the archive's order."""
    links: list[tuple[str, str]] = field(default_factory=list)
    """(name, target) of each link with an image's name."""
    inner: list[tuple[str, int, int]] = field(default_factory=list)
    """(name, offset, size) of each tar file in it."""
    has_classes: bool = False
    """True if a member is a WebDataset's `.cls` file."""


def list_images(archive: tarfile.TarFile, tally: LeftOutTally) -> TarImages:
    """Return the images, links and tar files of an archive, and count its other members in `tally`."""
    images = TarImages()
    for member in safe_members(archive):
        place = (member.name, member.offset_data, member.size)
        if member.isdir():
            continue
        if not is_image_name(member.name) and not member.name.lower().endswith(".tar"):
            images.has_classes |= member.name.endswith(".cls") and has_data(member)
            tally.add_file(member.name)
        elif has_data(member):
            (images.found if is_image_name(member.name) else images.inner).append(place)
        elif target := link_target(member):
            images.links.append((member.name, target))
        else:
            tell_special(member, tally)
    return images


def tell_special(member: tarfile.TarInfo, tally: LeftOutTally) -> None:
    """Count a member with an image's name that is a link out of the archive, a device or a sparse file."""
    if member.islnk() or member.issym():
        tally.add("links", member.name, "they lead out of the archive", lost=True)
    else:
        tally.add("sparse files, devices and pipes", member.name, lost=True)


def resolve_links(
    images: TarImages, others: Iterator[tarfile.TarInfo], tally: LeftOutTally
) -> list[tuple[str, int, int]]:
    """Return (name, offset, size) of each link that leads to a file of the archive; count the others in `tally`.

    Args:
        images: The archive's images and links.
        others: The archive's members, once more; read only if a link's target has no image's name.
        tally: Counts links that lead nowhere.

    """
    target_of = {posixpath.normpath(name): target for name, target in images.links}
    place_of = {posixpath.normpath(name): (offset, size) for name, offset, size in images.found}
    ends = {name: _end(target, target_of) for name, target in images.links}
    missing = {end for end in ends.values() if end not in place_of}
    if missing:
        for member in others:
            if has_data(member) and posixpath.normpath(member.name) in missing:
                place_of[posixpath.normpath(member.name)] = (member.offset_data, member.size)
    found = []
    for name, end in ends.items():
        if end in place_of:
            found.append((name, *place_of[end]))
        else:
            tally.add("links", name, _OUTSIDE, lost=True)
    return found


def _end(target: str, target_of: dict[str, str]) -> str:
    """Return the name at the end of a chain of links; that of a loop is one of its links, so no file's name."""
    for _ in range(MAX_LINKS):
        if target not in target_of:
            return target
        target = target_of[target]
    return target
