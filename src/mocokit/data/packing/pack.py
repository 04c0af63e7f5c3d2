"""Any image source -> tar shards with an index, and back.

Many small files become few large ones, which disks, networks and object stores read faster. The shards are WebDataset
shards too: `000000123.jpg`, and `000000123.cls` with the class number where there are labels.
"""

import contextlib
import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mocokit.data.batch import BadImage
from mocokit.data.decode.decode import DecodeError, decode
from mocokit.data.decode.jpeg import FRACTIONS, decode_jpeg, read_jpeg_header
from mocokit.data.loading.killed_workers import ResilientBatches
from mocokit.data.loading.workers import identity, init_worker
from mocokit.data.packing.shard_writer import ShardWriter, naming_path
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.shard_index import INDEX_NAME
from mocokit.data.sources.shards import ShardSource, is_url, open_shards
from mocokit.data.sources.sources import ImageSource, RawImage, labels_from_names

SKIPPED_NAME = "skipped.txt"
LABELS_NAME = "labels.csv"

Progress = Callable[[int, int], object]
"""Called with (images done, images in all)."""


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """What `pack` wrote, or `unpack`."""

    folder: Path
    num_images: int
    num_bytes: int
    """Of the images, without tar headers."""
    num_shards: int
    bad: tuple[BadImage, ...]
    """Images that were left out."""


def pack(
    location: str | Path,
    out: str | Path,
    *,
    max_image_px: int,
    short_side_px: int | None = None,
    quality: int = 90,
    shard_bytes: int = 256 * 2**20,
    workers: int = 0,
    on_progress: Progress = lambda done, total: None,
) -> PackResult:
    """Pack the images of `location` into shards in the folder `out`, in the order of `open_source`.

    Images are stored byte for byte (pixels of an IDX file as PNG), after a look whether they decode; those that don't
    are left out and listed in skipped.txt. Files have temporary names until all of them are on the disk.

    Args:
        location: What `open_source` reads.
        out: Folder to make; must be absent or empty.
        max_image_px: Larger images are bad images.
        short_side_px: Images with a longer short side are shrunk to it and stored as JPEG (RGB, upright); None: none.
        quality: Of those JPEGs, 1..100.
        shard_bytes: A shard ends before the image that would make it larger.
        workers: Processes that decode and encode; 0: this one.
        on_progress: Told after each image.

    Raises:
        ValueError: A setting or the data does not allow it.
        OSError: The disk is full or gone; what was written is removed.

    """
    _require(short_side_px is None or short_side_px >= 8, f"short_side_px={short_side_px}: must be at least 8 pixels")
    _require(1 <= quality <= 100, f"quality={quality}: must be in 1..100")
    _require(shard_bytes >= 1, f"shard_bytes={shard_bytes}: must be at least 1")
    folder = _free_folder(out)
    source = open_source(location)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = _Encoder(source, _names(source), short_side_px, quality, max_image_px)
    bad: list[BadImage] = []
    with ShardWriter(folder, shard_bytes) as writer:
        for number, image in enumerate(_encode_all(encoder, workers)):
            if isinstance(image, BadImage):
                bad.append(image)
            else:
                writer.add(number, *image, label=source.labels[number] if source.labels else None)
            on_progress(number + 1, len(source))
        if len(bad) == len(source):
            raise ValueError(f"data={location}: no image can be used, the first being {bad[0].name} ({bad[0].reason})")
        if bad:
            writer.write(SKIPPED_NAME, lambda file: file.write(_report(bad)))
        index = writer.index(source.class_names)
        writer.write(INDEX_NAME, index.save)
        writer.publish()
    num_bytes = int(index.members[2].sum())
    num_shards = len(index.shard_bytes)
    return PackResult(
        folder=folder, num_images=len(index.names), num_bytes=num_bytes, num_shards=num_shards, bad=tuple(bad)
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _free_folder(out: str | Path) -> Path:
    _require(not is_url(str(out)), f"out={out}: must be a folder of this machine; copy it there afterwards")
    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"out={folder}: exists and is not empty; remove it or choose another folder")
    return folder


def _names(source: ImageSource) -> tuple[str, ...]:
    names: tuple[str, ...] | None = getattr(source, "names", None)  # the images of an IDX file have none
    return names or tuple(f"{index:06d}.png" for index in range(len(source)))


def _report(bad: list[BadImage]) -> bytes:
    return "".join(f"{image.name}: {image.reason}\n" for image in bad).encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class _Encoder(Dataset[tuple[str, bytes] | BadImage]):
    """index -> (name, bytes to store)."""

    source: ImageSource
    names: tuple[str, ...]
    short_side_px: int | None
    quality: int
    max_image_px: int

    def __getitem__(self, index: int) -> tuple[str, bytes] | BadImage:
        try:
            raw = self.source.read(index)
            image = self._decode(raw)
            if self.short_side_px is not None and min(image.size) > self.short_side_px:
                return _as_jpeg_name(self.names[index]), _shrink(image, self.short_side_px, self.quality)
            return self.names[index], raw if isinstance(raw, bytes) else _png(raw)
        except (OSError, DecodeError) as error:
            return BadImage(index=index, name=self.source.name(index), reason=str(error))

    def _decode(self, raw: RawImage) -> Image.Image:
        """The image; a JPEG that is to shrink a lot at a fraction of its size, with twice the pixels needed or more."""
        header = read_jpeg_header(raw) if isinstance(raw, bytes) and self.short_side_px else None
        if header is not None and self.short_side_px and header.height * header.width <= self.max_image_px:
            shrinks = min(header.height, header.width) / (2 * self.short_side_px)
            fraction = next(part for part in FRACTIONS if part <= max(1.0, shrinks))
            if fraction > 1:
                with contextlib.suppress(ValueError):  # damaged: Pillow has the last word
                    return Image.fromarray(decode_jpeg(cast(bytes, raw), header, fraction=fraction))
        return decode(raw, max_image_px=self.max_image_px)


def _as_jpeg_name(name: str) -> str:
    """The name with a JPEG's suffix behind its own, so that a.png and a.jpg stay two images."""
    return name if PurePosixPath(name).suffix.lower() in {".jpg", ".jpeg"} else f"{name}.jpg"


def _shrink(image: Image.Image, short_side_px: int, quality: int) -> bytes:
    scale = short_side_px / min(image.size)
    file = io.BytesIO()
    size = (round(image.width * scale), round(image.height * scale))
    small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    small.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _encode_all(encoder: _Encoder, workers: int) -> Iterator[tuple[str, bytes] | BadImage]:
    """Every image, in order, at most 8 a worker ahead."""

    def load(indices: Iterable[int]) -> DataLoader[tuple[str, bytes] | BadImage]:
        """The images at `indices`, by new workers."""
        return DataLoader(
            encoder,
            batch_size=None,
            sampler=indices,
            num_workers=workers,
            collate_fn=identity,
            prefetch_factor=8 if workers else None,
            worker_init_fn=init_worker,
        )

    return iter(ResilientBatches(load, range(len(encoder.names))))


def unpack(location: str | Path, out: str | Path, *, on_progress: Progress = lambda done, total: None) -> PackResult:
    """Write the images of shards as files under their names, byte for byte as they were packed.

    Labels that class folders don't show go to labels.csv, a list that `open_source` reads. A name never leads out of
    the folder: `..` becomes `_up`, a leading `/` becomes `_root`.

    Args:
        location: What `open_shards` reads.
        out: Folder to make; must be absent or empty.
        on_progress: Told after each image.

    Raises:
        ValueError: No shards there, or two images of one name.
        OSError: The disk is full or gone.

    """
    folder = _free_folder(out)
    source = open_shards(str(location))
    folder.mkdir(parents=True, exist_ok=True)
    bad = list[BadImage]()
    written = list[int]()
    num_bytes = 0
    for index, name in enumerate(source.names):
        try:
            raw = source.read(index)
        except OSError as error:
            bad.append(BadImage(index=index, name=source.name(index), reason=str(error)))
        else:
            _write_new(folder / _inside(name), raw)
            written.append(index)
            num_bytes += len(raw)
        on_progress(index + 1, len(source))
    _write_labels(folder, source, written)
    return PackResult(
        folder=folder, num_images=len(written), num_bytes=num_bytes, num_shards=len(source.shards), bad=tuple(bad)
    )


def _inside(name: str) -> str:
    """The name as a path that stays below a folder."""
    safe = {"/": "_root", "//": "_root", "..": "_up"}
    return "/".join(safe.get(part, part) for part in PurePosixPath(name).parts)


def _write_new(path: Path, raw: bytes) -> None:
    if path.is_file() and path.read_bytes() != raw:  # a list may well name one file twice
        raise ValueError(f"out={path}: two different images have this name; rename one and pack again")
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming_path(path):
        path.write_bytes(raw)


def _write_labels(folder: Path, source: ShardSource, written: list[int]) -> None:
    """Write labels.csv, if unpacked class folders would not tell these labels."""
    if source.labels is None or labels_from_names(source.names) == (source.labels, source.class_names):
        return
    with (folder / LABELS_NAME).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerow(("path", "label"))
        csv.writer(file).writerows((_inside(source.names[i]), source.class_names[source.labels[i]]) for i in written)
