"""Source of the images inside an uncompressed tar file, also of tar files inside it, as ImageNet is distributed."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.archives import archive_layout, is_inside, keep_places, test_part_of
from mocokit.data.sources.left_out import LeftOut, LeftOutTally
from mocokit.data.sources.limits import refuse_pointer, require_entries, require_image_bytes
from mocokit.data.sources.names import Names
from mocokit.data.sources.suffixes import unpacking_command
from mocokit.data.sources.tar_members import (
    TarImages,
    damage_as_tar_error,
    list_images,
    resolve_links,
    safe_members,
    tell_rest,
)

Place = tuple[str, int, int]
"""(name, offset, size) of an image, in bytes."""


@dataclass(frozen=True, eq=False)
class TarSource:
    """Images of an uncompressed tar file, read at the offsets that were found when it was opened."""

    path: Path
    names: Sequence[str]
    spans: NDArray[np.int64]
    """(N, 2): offset and size of each image's data, in bytes."""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    label_note: str = ""
    test_part: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return `archive:member`."""
        return f"{self.path}:{self.names[index]}"

    def read(self, index: int) -> bytes:
        """Return the member's bytes.

        Raises:
            OSError: The archive was cut, the image exceeds MAX_IMAGE_BYTES, or it is a git-lfs pointer.

        """
        offset, size = map(int, self.spans[index])
        require_image_bytes(size)
        with self.path.open("rb") as file:
            file.seek(offset)
            raw = file.read(size)
        if len(raw) < size:
            raise OSError(f"the archive ends within this image: {len(raw)} of {size} bytes")
        return refuse_pointer(raw)


class Window(io.RawIOBase):
    """The bytes start : start + size of a file, as a file of its own that can only be read.

    Args:
        file: The whole file, which the caller closes.
        start: First byte.
        size: Number of bytes.

    """

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, and return it; a negative one is an error."""
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise OSError("a position before the start of the file")
        self._position = position
        return position

    def readinto(self, buffer: object) -> int:
        """Fill the buffer, as far as the window goes; return the number of bytes."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        count = max(0, min(len(view), self._size - self._position))
        self._file.seek(self._start + self._position)
        raw = self._file.read(count)
        view[: len(raw)] = raw
        self._position += len(raw)
        return len(raw)


def scan_tar(path: Path, tally: LeftOutTally) -> TarImages:
    """Return the images and links of a tar file; each link that leads to a file is among the images.

    Raises:
        ValueError: Not an uncompressed tar file, or damaged.

    """
    try:
        with path.open("rb") as file:
            return _scan(file, tally)
    except tarfile.TarError as error:
        with path.open("rb") as file:
            command = unpacking_command(path, file.read(8))
        if command:
            raise ValueError(
                f"data={path}: compressed, so that its images can't be read in any order, as training needs; unpack it "
                f"and give what it held: {command}"
            ) from error
        raise ValueError(f"data={path}: not a readable uncompressed tar file ({error})") from error


def _scan(file: IO[bytes], tally: LeftOutTally) -> TarImages:
    with damage_as_tar_error(), tarfile.open(fileobj=file, mode="r:") as archive:
        images = list_images(archive, tally)
        tell_rest(archive, file, tally)
    if images.links:
        images.found += resolve_links(images, _again(file), tally)
    return images


def _again(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file that was read before."""
    file.seek(0)
    with damage_as_tar_error(), tarfile.open(fileobj=file, mode="r:") as archive:
        yield from safe_members(archive)


def build_tar_source(path: Path, images: TarImages, tally: LeftOutTally, inside: str = "") -> TarSource:
    """Return a source of a tar file's images, sorted by name; `inside` is a folder to which they are restricted.

    If there are tar files and no images in it, the images are those of the inner tar files. The name of each, without
    `.tar`, is a folder of their names.

    Raises:
        ValueError: No images, or an inner tar file is damaged.

    """
    found = images.found
    if not found and images.inner:
        found = _read_inner(path, images.inner, tally)
    else:
        for name, _, _ in images.inner:
            tally.add_file(name)
    places = sorted(place for place in found if is_inside(place[0], inside))
    names = tuple(name for name, _, _ in places)
    layout = archive_layout(path, names, tally, inside=inside, kind="tar file")
    return TarSource(
        path=path,
        names=Names(layout.names),
        spans=np.array([places[row][1:] for row in keep_places(names, layout)], np.int64),
        labels=layout.labels,
        class_names=layout.class_names,
        left_out=tally.result(),
        label_note=layout.note,
        test_part=test_part_of(path, layout),
    )


def _read_inner(path: Path, inner: list[Place], tally: LeftOutTally) -> list[Place]:
    """Return the images of the tar files in a tar file, at their offsets in the outer one."""
    found: list[Place] = []
    with path.open("rb") as file:
        for name, start, size in inner:
            try:
                images = _scan(io.BufferedReader(Window(file, start, size)), tally)
            except tarfile.TarError as error:
                message = f"{name} in it is not a readable uncompressed tar file ({error})"
                raise ValueError(f"data={path}: {message}") from error
            for deeper, _, _ in images.inner:
                tally.add_file(f"{name}/{deeper}")
            folder = name[: -len(".tar")]
            found += [(f"{folder}/{image}", start + offset, length) for image, offset, length in images.found]
            require_entries(len(found), path)
    return found
