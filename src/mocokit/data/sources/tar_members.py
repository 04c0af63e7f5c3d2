"""Read the headers of a tar file, safely even if they are damaged or forged."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

from mocokit.data.sources.limits import ARCHIVE_ERRORS, MAX_ENTRIES


@contextmanager
def damage_as_tar_error() -> Iterator[None]:
    """Context manager that turns any exception of tarfile on a damaged header into a TarError."""
    try:
        yield
    except tarfile.TarError:
        raise
    except ARCHIVE_ERRORS as error:
        raise tarfile.ReadError(str(error) or type(error).__name__) from error


def regular_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of an archive in order.

    Links, devices and sparse files are left out: their data does not follow their header.

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
            if member.isreg() and not member.issparse():
                yield member
            # tarfile keeps every header, and each can hold a copy of the archive's global header: free them.
            archive.members.clear()  # type: ignore[attr-defined]
