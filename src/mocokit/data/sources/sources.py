"""Where images come from: a folder, a list, an archive or an IDX file, behind one small interface.

Nothing is unpacked and no class folder is invented: labels, where the layout has them, serve evaluation only.
"""

import csv
import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.limits import MAX_IDX_BYTES, read_regular_file, require_entries

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

RawImage = bytes | NDArray[np.uint8]
"""An encoded file, or pixels (H, W) or (H, W, 3)."""


class ImageSource(Protocol):
    """A numbered, immutable sequence of images; indices are stable between runs on the same data."""

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class of each image, or None."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class; empty without labels."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        ...

    def read(self, index: int) -> RawImage:
        """The image as stored; OSError when it can't be read."""
        ...


def is_image_name(name: str) -> bool:
    """Whether a file name looks like an image; hidden files and archive leftovers (`__MACOSX`) do not."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def labels_from_names(names: Sequence[str]) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Classes from class folders: the first folder below what all names share; (None, ()) without such folders."""
    parts = [PurePosixPath(name).parts for name in names]
    folders = [path[:-1] for path in parts]
    shared = 0
    while all(len(path) > shared and path[shared] == folders[0][shared] for path in folders):
        shared += 1
    if any(len(path) < shared + 2 for path in parts):
        return None, ()  # some images lie beside the folders: not a class layout
    return label_ids([path[shared] for path in parts])


def label_ids(classes: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Number the classes in sorted order."""
    class_names = tuple(sorted(set(classes)))
    number = {name: index for index, name in enumerate(class_names)}
    return tuple(number[name] for name in classes), class_names


@dataclass(frozen=True)
class FileSource:
    """Image files by path."""

    root: Path
    names: tuple[str, ...]
    """Paths relative to `root`, or absolute."""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.root / self.names[index])

    def read(self, index: int) -> bytes:
        """The file's bytes; OSError for what is no regular file of a sane size."""
        return read_regular_file(self.root / self.names[index])


def open_folder(root: Path) -> FileSource:
    """Every image below `root`, at any depth, links followed; sorted by path."""
    names = tuple(sorted(path.relative_to(root).as_posix() for path in _walk(root)))
    if not names:
        idx = sorted(path.name for path in root.glob("*idx3-ubyte*"))
        hint = f"; did you mean the file {idx[0]}?" if idx else f"; mocokit reads {_suffixes()}"
        raise ValueError(f"data={root}: no images below this folder{hint}")
    return FileSource(root, names, *labels_from_names(names))


def _walk(root: Path) -> Iterator[Path]:
    seen: set[str] = set()  # a link to a parent must not loop
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        for file in files:
            path = Path(folder, file)
            if is_image_name(path.relative_to(root).as_posix()):
                yield path


def _suffixes() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))


def open_list(path: Path) -> FileSource:
    """A list of image paths, relative to the list's folder, each with or without a label.

    `.csv` and `.tsv`: first column the path, second the label, an optional header. Otherwise a path a line, or a path
    and a label with white space between them; `#` starts a comment line.
    """
    try:
        rows = _read_table(path) if path.suffix.lower() in {".csv", ".tsv"} else _read_lines(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"data={path}: not a list in UTF-8 text ({error})") from error
    names = tuple(row[0] for row in rows)
    if not names:
        raise ValueError(f"data={path}: the list names no images; write a path a line")
    require_entries(len(names), path)
    first = names[:100]
    if not any((path.parent / name).is_file() for name in first):
        raise ValueError(
            f"data={path}: none of the first {len(first)} paths exists ({path.parent / names[0]}); "
            "paths are relative to the list's folder"
        )
    if any(len(row) > 1 for row in rows):
        if not all(len(row) > 1 for row in rows):
            bare = next(row[0] for row in rows if len(row) < 2)
            raise ValueError(f"data={path}: {bare} has no label but others do; label all or none")
        return FileSource(path.parent, names, *label_ids([row[1] for row in rows]))
    return FileSource(path.parent, names, None, ())


def _read_table(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        rows = [[cell.strip() for cell in row[:2] if cell.strip()] for row in table]
    rows = [row for row in rows if row]
    return rows[1:] if rows and not is_image_name(PurePosixPath(rows[0][0]).name) else rows


def _read_lines(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_split_line(line.strip()) for line in lines if line.strip() and not line.startswith("#")]


def _split_line(line: str) -> list[str]:
    return [line] if is_image_name(PurePosixPath(line).name) else line.rsplit(maxsplit=1)


@dataclass(frozen=True, eq=False)
class IdxSource:
    """Images of an IDX file (MNIST's format), held in memory."""

    path: Path
    pixels: NDArray[np.uint8]
    """(N, H, W)"""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """File and position."""
        return f"{self.path}#{index}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """(H, W) pixels."""
        image: NDArray[np.uint8] = self.pixels[index]
        return image


def open_idx(path: Path) -> IdxSource:
    """`*-images-idx3-ubyte[.gz]`, with labels from `*-labels-idx1-ubyte[.gz]` when that lies beside it."""
    pixels = read_idx(path, num_dims=3)
    stem = path.name.removesuffix(".gz").replace("images-idx3", "labels-idx1")
    for labels_path in (path.with_name(stem), path.with_name(stem + ".gz")):
        if labels_path != path and labels_path.exists():
            labels = read_idx(labels_path, num_dims=1)
            if len(labels) != len(pixels):
                raise ValueError(f"data={labels_path}: {len(labels)} labels for {len(pixels)} images")
            return IdxSource(path, pixels, *label_ids([f"{label:03d}" for label in labels]))
    return IdxSource(path, pixels, None, ())


def read_idx(path: Path, *, num_dims: int) -> NDArray[np.uint8]:
    """The uint8 array of an IDX file.

    Raises:
        ValueError: Not an IDX file of `num_dims` dimensions, its length is not what its header says, or that is over
            MAX_IDX_BYTES.

    """
    header = 4 + 4 * num_dims
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(header)
            if len(start) < header or start[:4] != bytes([0, 0, 8, num_dims]):  # 8: unsigned bytes
                raise ValueError(f"data={path}: not an IDX file of unsigned bytes with {num_dims} dimensions")
            shape = struct.unpack(f">{num_dims}I", start[4:])
            size = math.prod(shape)
            require_entries(shape[0], path)
            if size > MAX_IDX_BYTES:
                raise ValueError(f"data={path}: {size} bytes of pixels, more than {MAX_IDX_BYTES}; use image files")
            raw = file.read(size + 1)  # no more than that is unpacked, whatever the file holds
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"data={path}: can't be read ({error})") from error
    if len(raw) != size or not size:
        held = f"{len(raw)} bytes" if len(raw) <= size else "more bytes"
        raise ValueError(f"data={path}: holds {held}, its header says {shape}")
    return np.frombuffer(raw, np.uint8).reshape(shape)
