"""Source of the images of an IDX file, the format of MNIST."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.layout import label_ids
from mocokit.data.sources.limits import MAX_IDX_BYTES, require_entries
from mocokit.settings import require


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
