"""Remember the files of large folders between runs, so that they need not be listed again.

A remembered list is used only if no folder below the root has changed since: each has the same inode and the same times
of modification and of change, which the file system renews when an entry is added, removed or renamed. Other bytes in a
file are no business of the list; the identity of the data (identity.py) finds those.

It is never used where these times don't tell everything: below links, in folders that can't be listed, on file systems
that are not known to keep the times (FAT, FUSE, Windows), and while a folder has changed a short time ago.
"""

import hashlib
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.left_out import LeftOutTally
from mocokit.data.sources.limits import ARCHIVE_ERRORS
from mocokit.data.sources.names import Names, join_names
from mocokit.data.sources.suffixes import readable_suffixes

LOGGER = logging.getLogger("mocokit")

FORMAT = 1
"""Version of the remembered lists. Raise it if a change of code finds other files in the same folders."""
MIN_FILES = 10_000
"""Smaller folders are listed in 0.03 s."""
SETTLED_NS = 600 * 10**9
"""Age of the newest change that a remembered folder may have. Two changes within one tick of the file system's clock
(2 s at most) look like one, and the clock of a file server may differ from ours."""
FILE_SYSTEMS = frozenset(
    {"bcachefs", "beegfs", "btrfs", "ceph", "ext2", "ext3", "ext4", "f2fs", "gpfs", "lustre", "nfs", "nfs4", "overlay"}
    | {"tmpfs", "xfs", "zfs"}
)
"""File systems that renew a folder's times at each change of its entries."""


@dataclass
class Listing:
    """The folders that were listed below a root, and their states before."""

    root: Path
    started_ns: int = field(default_factory=time.time_ns)
    folders: list[str] = field(default_factory=list)
    states: list[tuple[int, ...]] = field(default_factory=list)
    """See `folder_state`."""
    has_all_times: bool = True
    """False once something was met whose changes the folders' times don't tell."""

    def add(self, below: str) -> None:
        """Note the state of a folder, before its entries are listed."""
        try:
            self.states.append(folder_state(self.root / below))
            self.folders.append(below)
        except OSError:
            self.has_all_times = False

    def may_be_kept(self, num_files: int) -> bool:
        """Return True if the list is long enough to be worth it, and the folders' times will tell of each change."""
        if not self.has_all_times or num_files < max(MIN_FILES, 10 * len(self.folders)):
            return False
        device = self.states[0][0]
        settled = self.started_ns - SETTLED_NS
        return all(state[0] == device and max(state[2:]) < settled for state in self.states)


def folder_state(path: Path) -> tuple[int, int, int, int]:
    """Return device, inode, and the times of modification and of change in nanoseconds of a folder."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def cache_folder() -> Path | None:
    """Return the folder of remembered lists, in $XDG_CACHE_HOME or ~/.cache; None without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(given) if Path(given).is_absolute() else Path.home() / ".cache") / "mocokit" / "folders"
    except RuntimeError:  # no home
        return None


def remember(listing: Listing, names: Sequence[str], tally: LeftOutTally) -> None:
    """Keep a list for the next run, if it may be kept and the disk allows it."""
    place = _place(listing.root)
    if place is None or not listing.may_be_kept(len(names)) or not _keeps_times(listing.root):
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=place.stem)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(
                    file,
                    key=np.array(_key(listing.root)),
                    folders=np.frombuffer(join_names(listing.folders), np.uint8),
                    states=np.array(listing.states, np.int64),
                    names=np.frombuffer(join_names(names), np.uint8),
                    left_out=np.array(json.dumps(tally.state())),
                )
            Path(temporary).replace(place)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:  # a full or read-only disk: the next run lists the folder again
        LOGGER.debug("the list of %s could not be kept: %s", listing.root, error)


def recall(root: Path, tally: LeftOutTally) -> Names | None:
    """Return the names of the images below `root` that an earlier run found, and add to `tally` what it left out.

    Returns:
        None if there is no list, if it is damaged, or if a folder has changed since.

    """
    place = _place(root)
    if place is None or not place.is_file():
        return None
    try:
        with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as arrays:
            if str(arrays["key"]) != _key(root):
                return None
            folders = Names.split(arrays["folders"])
            if not _are_unchanged(root, folders, arrays["states"]):
                return None
            names = Names.split(arrays["names"])
            left_out = LeftOutTally.from_state(json.loads(str(arrays["left_out"])))
    except ARCHIVE_ERRORS as error:
        LOGGER.debug("the remembered list of %s can not be read: %s", root, error)
        return None
    tally.update(left_out)
    return names


def _are_unchanged(root: Path, folders: Sequence[str], states: NDArray[Any]) -> bool:
    """Return True if each folder has the state that was noted."""
    if states.shape != (len(folders), 4) or not len(folders):
        return False
    return all(folder_state(root / below) == tuple(row) for below, row in zip(folders, states.tolist(), strict=True))


def _place(root: Path) -> Path | None:
    folder = cache_folder()
    real = os.fsencode(os.path.realpath(root))
    return folder and folder / f"{hashlib.sha256(real).hexdigest()[:32]}.npz"


def _key(root: Path) -> str:
    """Return what a list depends on beside the folders: the root, this format, and the suffixes that are read."""
    real = os.fsencode(os.path.realpath(root)).hex()
    return f"{FORMAT} {real} {' '.join(sorted(readable_suffixes()))}"


def _keeps_times(root: Path) -> bool:
    """Return True if the file system of `root` is one of FILE_SYSTEMS; False where the system does not tell."""
    real = os.path.realpath(root)
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    kind = ""
    longest = -1
    for line in lines:
        _, mounted, found, *_ = line.split(" ")
        point = mounted.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        if len(point) >= longest and f"{real}/".startswith(f"{point.rstrip('/')}/"):
            kind = found  # of two at one place, the later one covers the earlier one
            longest = len(point)
    return kind in FILE_SYSTEMS
