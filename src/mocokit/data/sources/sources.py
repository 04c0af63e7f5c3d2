"""The contract of an image source, and the sources that read folders, lists of paths and IDX files.

Images are read where they are; nothing is unpacked. Labels come from the layout of the data if it has any; only
evaluation uses them.
"""

import csv
import gzip
import logging
import math
import os
import struct
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.limits import MAX_IDX_BYTES, read_regular_file, require_entries
from mocokit.data.sources.own_output import is_own_output
from mocokit.settings import require

LOGGER = logging.getLogger("mocokit")

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

RawImage = bytes | NDArray[np.uint8]
"""The bytes of an image file, or uint8 pixels of shape (H, W) or (H, W, 3), RGB."""


def is_pixels(image: object) -> TypeGuard[NDArray[np.uint8]]:
    """Return True if `image` is a non-empty uint8 array of shape (H, W) or (H, W, 3)."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or not image.size:
        return False
    return image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)


def describe_kind(image: object) -> str:
    """Return the type of an object for messages, and dtype and shape of an array."""
    return f"a {image.dtype} array {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"


class ImageSource(Protocol):
    """A sequence of images that are read by their index, 0 to len - 1.

    Any object with these five members is a source; it need not subclass this class. A subclass must define `__len__`
    and `read`. It inherits numbers as names and no labels; with labels, it overrides `labels` and `class_names` by
    properties. `open_source` checks an object before it is used.

    - An index must give the same image in every run: draws, resume and saved features depend on it. So `read` must
      not be random; augmentation belongs in the recipe.
    - Several processes and threads read at the same time. Worker processes may get a pickled copy, so the object must
      be picklable: open files and connections in `read`, not in `__init__`.

    Example:
        class Scans(ImageSource):
            def __init__(self, folder: Path) -> None:
                self.paths = sorted(folder.glob("*.scan"))

            def __len__(self) -> int:
                return len(self.paths)

            def read(self, index: int) -> NDArray[np.uint8]:
                return np.fromfile(self.paths[index], np.uint8).reshape(512, 512)

        source = open_source(Scans(Path("scans")))

    """

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class number of each image, an index into `class_names`; None without labels."""
        return None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class; empty without labels."""
        return ()

    @abstractmethod
    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return a name that identifies the image in messages and in the fingerprint of the data."""
        return str(index)

    @abstractmethod
    def read(self, index: int) -> RawImage:
        """Return the image file's bytes, or pixels.

        Raises:
            OSError: The image can't be read. It is counted as a bad image, and another one takes its place.

        """
        ...


def is_image_name(name: str) -> bool:
    """Return True for a path with an image's suffix, unless a part of it is hidden or is `__MACOSX`.

    Archives made on macOS hold a `__MACOSX` folder of metadata files under the images' names.
    """
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def labels_from_names(names: Sequence[str]) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Return (labels, class names) from class folders, or (None, ()) if the layout has none.

    The class folder is the first one below the path that all names share. If any image lies above that level, the
    folders are not taken for classes.
    """
    parts = [PurePosixPath(name).parts for name in names]
    folders = [path[:-1] for path in parts]
    shared = 0
    while all(len(path) > shared and path[shared] == folders[0][shared] for path in folders):
        shared += 1
    if any(len(path) < shared + 2 for path in parts):
        return None, ()
    return label_ids([path[shared] for path in parts])


def label_ids(classes: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return each image's class number, and the class names in sorted order.

    Args:
        classes: Class name of each image.

    """
    class_names = tuple(sorted(set(classes)))
    number = {name: index for index, name in enumerate(class_names)}
    return tuple(number[name] for name in classes), class_names


@dataclass(frozen=True)
class FileSource:
    """Image files, read by path."""

    root: Path
    names: tuple[str, ...]
    """Path of each image, relative to `root` or absolute."""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the file's path."""
        return str(self.root / self.names[index])

    def read(self, index: int) -> bytes:
        """Return the file's bytes; raise OSError like `read_regular_file`."""
        return read_regular_file(self.root / self.names[index])


def open_folder(root: Path) -> FileSource:
    """Return a source of all images below `root`, at any depth, sorted by path; symbolic links are followed.

    Raises:
        ValueError: No images.

    """
    names = tuple(sorted(path.relative_to(root).as_posix() for path in _walk(root)))
    if not names:
        idx = sorted(path.name for path in root.glob("*idx3-ubyte*"))
        suffixes = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        hint = f"; did you mean the file {idx[0]}?" if idx else f"; mocokit reads {suffixes}"
        raise ValueError(f"data={root}: no images below this folder{hint}")
    return FileSource(root, names, *labels_from_names(names))


def _walk(root: Path) -> Iterator[Path]:
    """Yield the image files below `root`; visit each real folder once, since links can form a loop.

    Folders below it that mocokit wrote, such as run folders, are left out.
    """
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        if Path(folder) != root and is_own_output([*subfolders, *files]):
            LOGGER.warning("data=%s: %s was written by mocokit; its pictures are left out", root, folder)
            subfolders.clear()
            continue
        for file in files:
            path = Path(folder, file)
            if is_image_name(path.relative_to(root).as_posix()):
                yield path


def open_list(path: Path) -> FileSource:
    """Return a source of the images that a text file lists, with labels if every line has one.

    Paths are relative to the list's folder, or absolute. In `.csv` and `.tsv` files, the first column is the path and
    the second the label; a header is optional. Other files hold one path a line, or a path, white space and a label;
    a line that starts with `#` is a comment.

    Raises:
        ValueError: Not UTF-8 text, no paths, none of the first 100 paths exists, or only some lines have a label.

    """
    try:
        rows = _read_table(path) if path.suffix.lower() in {".csv", ".tsv"} else _read_lines(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"data={path}: not a list in UTF-8 text ({error})") from error
    names = tuple(row[0] for row in rows)
    require(bool(names), "data", path, "the list names no images; write one path per line")
    require_entries(len(names), path)
    first = names[:100]
    require(
        any((path.parent / name).is_file() for name in first),
        "data",
        path,
        f"none of the first {len(first)} paths exists ({path.parent / names[0]}); "
        "paths are relative to the list's folder",
    )
    if any(len(row) > 1 for row in rows):
        if not all(len(row) > 1 for row in rows):
            bare = next(row[0] for row in rows if len(row) < 2)
            raise ValueError(f"data={path}: {bare} has no label but others do; label all or none")
        return FileSource(path.parent, names, *label_ids([row[1] for row in rows]))
    return FileSource(path.parent, names, None, ())


def _read_table(path: Path) -> list[list[str]]:
    """Return [path] or [path, label] for each row of a .csv or .tsv file, without its header."""
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        rows = [[cell.strip() for cell in row[:2] if cell.strip()] for row in table]
    rows = [row for row in rows if row]
    # The first row is a header if its first cell is not the path of an image.
    return rows[1:] if rows and not is_image_name(PurePosixPath(rows[0][0]).name) else rows


def _read_lines(path: Path) -> list[list[str]]:
    """Return [path] or [path, label] for each line of a text file, without comments and empty lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_split_line(line.strip()) for line in lines if line.strip() and not line.startswith("#")]


def _split_line(line: str) -> list[str]:
    # A line that ends in an image's suffix has no label; its white space belongs to the path.
    return [line] if is_image_name(PurePosixPath(line).name) else line.rsplit(maxsplit=1)


@dataclass(frozen=True, eq=False)
class IdxSource:
    """Images of an IDX file (MNIST's format), held in memory."""

    path: Path
    pixels: NDArray[np.uint8]
    """(N, H, W), read-only"""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """Return `file#index`."""
        return f"{self.path}#{index}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels, (H, W)."""
        image: NDArray[np.uint8] = self.pixels[index]
        return image


def open_idx(path: Path) -> IdxSource:
    """Return a source of the images of `*-images-idx3-ubyte[.gz]`.

    Labels are read from `*-labels-idx1-ubyte[.gz]` in the same folder, if that file exists.

    Raises:
        ValueError: A file is not valid, or the numbers of images and labels differ.

    """
    pixels = read_idx(path, num_dims=3)
    stem = path.name.removesuffix(".gz").replace("images-idx3", "labels-idx1")
    for labels_path in (path.with_name(stem), path.with_name(stem + ".gz")):
        if labels_path != path and labels_path.exists():
            labels = read_idx(labels_path, num_dims=1)
            same_length = len(labels) == len(pixels)
            require(same_length, "data", labels_path, f"{len(labels)} labels for {len(pixels)} images")
            # Class names of three digits, so that they sort like the numbers 0..255.
            return IdxSource(path, pixels, *label_ids([f"{label:03d}" for label in labels]))
    return IdxSource(path, pixels, None, ())


def read_idx(path: Path, *, num_dims: int) -> NDArray[np.uint8]:
    """Return the uint8 array of an IDX file with `num_dims` dimensions.

    Raises:
        ValueError: Not an IDX file of unsigned bytes with `num_dims` dimensions, damaged, of another length than its
            header says, or larger than MAX_IDX_BYTES or MAX_ENTRIES.

    """
    header = 4 + 4 * num_dims
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(header)
            if len(start) < header or start[:4] != bytes([0, 0, 8, num_dims]):  # type code 8: unsigned bytes
                raise ValueError(f"data={path}: not an IDX file of unsigned bytes with {num_dims} dimensions")
            shape = struct.unpack(f">{num_dims}I", start[4:])
            size = math.prod(shape)
            require_entries(shape[0], path)
            message = f"{size} bytes of pixels, more than {MAX_IDX_BYTES}; use image files"
            require(size <= MAX_IDX_BYTES, "data", path, message)
            raw = file.read(size + 1)  # bounded: a .gz file may unpack to far more than its header says
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"data={path}: can't be read ({error})") from error
    if len(raw) != size or not size:
        held = f"{len(raw)} bytes" if len(raw) <= size else "more bytes"
        raise ValueError(f"data={path}: holds {held}, its header says {shape}")
    return np.frombuffer(raw, np.uint8).reshape(shape)
