"""The identity of a data set: equal for the same images wherever they are, different if images or labels changed.

It consists of the images' names, sizes, labels and content hashes (content.py says which bytes are looked at, and what
that costs). It is kept in run folders, checkpoints, feature caches, evaluation rows and detection trials.
"""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.archives import ZipSource
from mocokit.data.sources.content import NOT_SAMPLED, UNKNOWN, contents_of, is_in_memory
from mocokit.data.sources.limits import ARCHIVE_ERRORS
from mocokit.data.sources.names import Names, join_names
from mocokit.data.sources.shards import ShardSource
from mocokit.data.sources.sources import FileSource, ImageSource
from mocokit.data.sources.tar_archive import TarSource

FORMAT = 1
"""Version of the identity. Raise it if a change of code gives another one for the same images."""

EXAMPLES = 3
"""Images that a message names for each kind of change."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DataIdentity:
    """Names, sizes, content hashes and labels of the N images of a source, in its order."""

    names: Sequence[str]
    """Name of each image, without the folder that the data is in."""
    sizes: NDArray[np.int64]
    """(N,) bytes, UNKNOWN or MISSING"""
    contents: NDArray[np.uint64]
    """(N,) content hash, or NOT_SAMPLED"""
    labels: NDArray[np.int64]
    """(N,) index into `class_names`; (0,) without labels."""
    class_names: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all of it, in hex."""
        digest = hashlib.sha256(f"{FORMAT} {len(self.names)} {len(self.labels)}\0".encode())
        digest.update(join_names(self.class_names) + b"\0\0" + join_names(self.names) + b"\0\0")
        for values, kind in ((self.sizes, "<i8"), (self.contents, "<u8"), (self.labels, "<i8")):
            digest.update(values.astype(kind).tobytes())
        return digest.hexdigest()

    def save(self, file: IO[bytes]) -> None:
        """Write all of it as an .npz file; `load_identity` reads it."""
        np.savez_compressed(
            file,
            format=np.array(FORMAT),
            names=np.frombuffer(join_names(self.names), np.uint8),
            sizes=self.sizes,
            contents=self.contents,
            labels=self.labels,
            class_names=np.frombuffer(join_names(self.class_names), np.uint8),
        )


def identify(source: ImageSource) -> DataIdentity:
    """Return the identity of a source's images.

    Costs one `stat` a file and 200 MB of reads at most for folders; less for archives, which hold checksums.
    """
    names = image_names(source)
    sizes, contents = contents_of(source, names)
    return DataIdentity(
        names=names,
        sizes=sizes,
        contents=contents,
        labels=np.array(source.labels or (), np.int64),
        class_names=tuple(source.class_names),
    )


def image_names(source: ImageSource) -> Sequence[str]:
    """Return a name for each image that does not depend on the folder that the data is in."""
    if is_in_memory(source):
        return tuple(map(str, range(len(source))))
    if isinstance(source, FileSource | ZipSource | TarSource | ShardSource):
        return relative_names(source.names)
    return relative_names([source.name(index) for index in range(len(source))])


def relative_names(names: Sequence[str]) -> Sequence[str]:
    """Return the names; if all are absolute paths, without the folder that they share."""
    if not all(Path(name).is_absolute() for name in names):
        return names if isinstance(names, Names) else tuple(names)
    first = min(names)
    last = max(names)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(min(first, last)))
    start = first.rfind("/", 0, shared) + 1
    return Names(name[start:] for name in names)


def hash_names(names: Sequence[str]) -> str:
    """Return the SHA-256 of names, in hex."""
    return hashlib.sha256(join_names(names)).hexdigest()


def load_identity(raw: bytes, *, like: DataIdentity) -> DataIdentity | None:
    """Return the identity that a file holds; None if it is damaged or of another format.

    Args:
        raw: Bytes of the file.
        like: Identity that it will be compared with. A file that unpacks to far more than that is not unpacked.

    """
    limit = 2**26 + 16 * (len(join_names(like.names)) + 24 * len(like.names))
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if sum(member.file_size for member in archive.infolist()) > limit:
                return None
        with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
            if int(arrays["format"]) != FORMAT:
                return None
            loaded = DataIdentity(
                names=Names.split(arrays["names"]),
                sizes=arrays["sizes"].astype(np.int64),
                contents=arrays["contents"].astype(np.uint64),
                labels=arrays["labels"].astype(np.int64),
                class_names=tuple(Names.split(arrays["class_names"])),
            )
    except ARCHIVE_ERRORS:
        return None
    count = len(loaded.names)
    fits = loaded.sizes.shape == loaded.contents.shape == (count,) and loaded.labels.shape in ((0,), (count,))
    labels_fit = not loaded.labels.size or 0 <= loaded.labels.min() <= loaded.labels.max() < len(loaded.class_names)
    return loaded if fits and labels_fit else None


def describe_change(before: DataIdentity, now: DataIdentity) -> str:
    """Return how the images differ, with counts and the first names; empty if they do not."""
    if before.digest == now.digest:
        return ""
    old = {name: index for index, name in enumerate(before.names)}
    new = {name: index for index, name in enumerate(now.names)}
    shared = [(name, index, new[name]) for name, index in old.items() if name in new]
    counts = {
        "removed": [name for name in before.names if name not in new],
        "added": [name for name in now.names if name not in old],
        "with other content": [name for name, i, j in shared if _content_differs(before, i, now, j)],
        "with another label": [name for name, i, j in shared if _label(before, i) != _label(now, j)],
    }
    parts = [f"{len(names):,} {change} ({_examples(names)})" for change, names in counts.items() if names]
    if not parts and len(before.names) != len(now.names):
        parts = [f"{len(before.names):,} images before, some of them twice"]
    order = "in another order" if before.names != now.names else "other class names"
    return f"{len(now.names):,} images now: {', '.join(parts or [order])}"


def _content_differs(before: DataIdentity, i: int, now: DataIdentity, j: int) -> bool:
    sizes = {int(before.sizes[i]), int(now.sizes[j])}
    if len(sizes) == 2 and UNKNOWN not in sizes:
        return True
    hashes = {int(before.contents[i]), int(now.contents[j])}
    return len(hashes) == 2 and NOT_SAMPLED not in hashes


def _label(identity: DataIdentity, index: int) -> str | None:
    return identity.class_names[identity.labels[index]] if identity.labels.size else None


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")
