"""The members of a tar file by its headers, with what a hostile one could do in mind."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

from mocokit.data.sources.limits import ARCHIVE_ERRORS, MAX_ENTRIES


@contextmanager
def damage_as_tar_error() -> Iterator[None]:
    """Whatever a damaged header makes tarfile raise, as a TarError."""
    try:
        yield
    except tarfile.TarError:
        raise
    except ARCHIVE_ERRORS as error:
        raise tarfile.ReadError(str(error) or type(error).__name__) from error


def regular_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Plain files, in order: no links, devices or sparse files, whose data is not where their header is.

    Headers that were seen are let go of: each may carry a copy of the archive's global header.

    Raises:
        tarfile.TarError: Damaged, more than MAX_ENTRIES members, or one that leads back to an earlier place.

    """
    before = -1
    with damage_as_tar_error():
        for count, member in enumerate(archive):
            if count >= MAX_ENTRIES:
                raise tarfile.ReadError(f"more than {MAX_ENTRIES:,} members")
            if member.offset <= before or member.size < 0:
                raise tarfile.ReadError("a member that leads back to an earlier place")
            before = member.offset
            if member.isreg() and not member.issparse():
                yield member
            archive.members.clear()  # type: ignore[attr-defined]
