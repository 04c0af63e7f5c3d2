"""Pack any image source into tar shards with an index, and unpack shards into files.

Disks, networks and object stores read few large files faster than many small ones. The shards are WebDataset shards
too: image 123 is the member `000000123.jpg`, and its class number, if it has one, is the member `000000123.cls`.
"""

import contextlib
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mocokit.data.batch import BadImage
from mocokit.data.decode.decode import DecodeError, decode_samples
from mocokit.data.decode.deep import GIVEN, DeepPixels, ValueRanges, to_8_bit
from mocokit.data.decode.jpeg import FRACTIONS, decode_jpeg, read_jpeg_header
from mocokit.data.loading.killed_workers import ResilientBatches
from mocokit.data.loading.workers import identity, init_worker
from mocokit.data.packing.shard_writer import ShardWriter, naming_path
from mocokit.data.sources.archives import ZipSource
from mocokit.data.sources.layout import labels_from_names
from mocokit.data.sources.left_out import describe_source, log_line
from mocokit.data.sources.open_source import ImageData, describe_data, open_source
from mocokit.data.sources.shard_index import INDEX_NAME, ShardIndex
from mocokit.data.sources.shards import ShardSource, is_url, open_shards
from mocokit.data.sources.sources import FileSource, ImageSource, RawImage
from mocokit.data.sources.tar_archive import TarSource
from mocokit.data.value_range import NO_DEEP_IMAGES, MeasuredRanges, is_range, measure_ranges
from mocokit.settings import require

SKIPPED_NAME = "skipped.txt"
LABELS_NAME = "labels.csv"

MAX_JPEG_SIDE_PX = 65_500
"""Longest side that libjpeg writes."""

Progress = Callable[[int, int], object]
"""Called with (number of images done, number of all images)."""


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """Result of `pack` or `unpack`."""

    folder: Path
    num_images: int
    num_bytes: int
    """Bytes of the images, without tar headers."""
    num_shards: int
    bad: tuple[BadImage, ...]
    """Images that were left out."""
    ranges: MeasuredRanges = NO_DEEP_IMAGES
    """Value ranges by which samples of more than 8 bits became JPEGs, and what to tell about them."""


def pack(
    data: ImageData,
    out: str | Path,
    *,
    max_image_px: int,
    short_side_px: int | None = None,
    quality: int = 90,
    value_range: tuple[float, float] | None = None,
    shard_bytes: int = 256 * 2**20,
    workers: int = 0,
    on_progress: Progress = lambda done, total: None,
    on_data: Callable[[str], object] = log_line,
) -> PackResult:
    """Pack the images of `data` into shards in the folder `out`, in the order of the source.

    Every image is decoded as a check. Good images are stored byte for byte (pixels as PNG); bad images are left out
    and listed in skipped.txt. All files have temporary names until the last one is on the disk.

    Args:
        data: Images, in any form that `open_source` takes.
        out: Folder to write; must not exist, or be empty.
        max_image_px: Images with more pixels count as bad.
        short_side_px: Shrink images with a longer short side to this one, and store them as JPEG (RGB, upright);
            None: don't shrink.
        quality: JPEG quality of shrunk images, 1..100.
        value_range: Values of samples of more than 8 bits that become 0 and 255 in shrunk images; None: measured.
        shard_bytes: Maximal size of a shard, unless one image alone is larger.
        workers: Processes that decode and encode; 0: this process.
        on_progress: Called after each image.
        on_data: Called with a line about the images: how many, of which classes, what was left out.

    Raises:
        ValueError: A setting is out of range, `out` is in use, or no image can be used.
        OSError: Writing failed, for example on a full disk; all written files are removed.

    """
    require(short_side_px is None or short_side_px >= 8, "short_side_px", short_side_px, "must be at least 8 pixels")
    require(1 <= quality <= 100, "quality", quality, "must be in 1..100")
    require(shard_bytes >= 1, "shard_bytes", shard_bytes, "must be at least 1")
    known = _known_ranges(value_range)
    folder = _free_folder(out)
    source = open_source(data)
    on_data(f"data: {describe_source(source)}")
    folder.mkdir(parents=True, exist_ok=True)
    ranges = NO_DEEP_IMAGES
    if short_side_px is not None:
        ranges = measure_ranges(source, max_image_px=max_image_px, seed=0, known=known)
    encoder = _Encoder(source, _names(source), short_side_px, quality, max_image_px, ranges.ranges)
    bad, index = _write_shards(folder, encoder, shard_bytes, workers, on_progress, describe_data(data))
    return PackResult(
        folder=folder,
        num_images=len(index.names),
        num_bytes=int(index.members[2].sum()),
        num_shards=len(index.shard_bytes),
        bad=tuple(bad),
        ranges=ranges,
    )


def _write_shards(
    folder: Path, encoder: "_Encoder", shard_bytes: int, workers: int, on_progress: Progress, data: str
) -> tuple[list[BadImage], ShardIndex]:
    """Write all shards, the list of bad images and the index; return the last two."""
    with ShardWriter(folder, shard_bytes) as writer:
        bad = _add_all(writer, encoder, workers, on_progress)
        if len(bad) == len(encoder.source):
            first = f"the first is {bad[0].name} ({bad[0].reason})"
            raise ValueError(f"data={data}: no image can be used; {first}")
        if bad:
            writer.write(SKIPPED_NAME, lambda file: file.write(_report(bad)))
        index = writer.index(encoder.source.class_names)
        writer.write(INDEX_NAME, index.save)
        writer.publish()
    return bad, index


def _known_ranges(value_range: tuple[float, float] | None) -> ValueRanges:
    """Return the range that the user gave; nothing for None.

    Raises:
        ValueError: It is no range.

    """
    if value_range is None:
        return {}
    require(
        is_range(*value_range),
        "value_range",
        value_range,
        "needs two finite numbers LOW < HIGH; leave it out to measure them",
    )
    return {GIVEN: value_range}


def _free_folder(out: str | Path) -> Path:
    """Return `out` as a path; raise ValueError if it is a url, a file, or a folder that is not empty."""
    require(not is_url(str(out)), "out", out, "must be a folder of this machine; copy it there afterwards")
    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"out={folder}: exists and is not empty; remove it or choose another folder")
    return folder


def _names(source: ImageSource) -> Sequence[str] | None:
    """Return the path of each image, or None for a source whose images are not files."""
    return source.names if isinstance(source, FileSource | ZipSource | TarSource | ShardSource) else None


def _report(bad: list[BadImage]) -> bytes:
    return "".join(f"{image.name}: {image.reason}\n" for image in bad).encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class _Encoder(Dataset[tuple[str, bytes] | BadImage]):
    """Maps the index of an image to (name, bytes to store), or to a BadImage."""

    source: ImageSource
    names: Sequence[str] | None
    """Path of each image; None: numbers."""
    short_side_px: int | None
    quality: int
    max_image_px: int
    ranges: ValueRanges
    """For shrunk images; others are stored as they are."""

    def __getitem__(self, index: int) -> tuple[str, bytes] | BadImage:
        try:
            raw = self.source.read(index)
            pixels = self._decode(raw)
            name = self.names[index] if self.names else f"{index:06d}{_suffix(raw)}"
            size = pixels.samples.shape[1::-1] if isinstance(pixels, DeepPixels) else pixels.size
            if self.short_side_px is not None and _shrinks(size, self.short_side_px):
                image = to_8_bit(pixels, self.ranges) if isinstance(pixels, DeepPixels) else pixels
                return _with_jpeg_suffix(name), _shrink(image, self.short_side_px, self.quality)
            return name, raw if isinstance(raw, bytes) else _png(raw)
        except (OSError, DecodeError) as error:
            return BadImage(index=index, name=self.source.name(index), reason=str(error))

    def _decode(self, raw: RawImage) -> Image.Image | DeepPixels:
        """Return the decoded image; a JPEG that will shrink a lot may be decoded at a fraction of its size.

        The fraction leaves at least twice the final short side, so that the resize still decides the sharpness.
        """
        header = read_jpeg_header(raw) if isinstance(raw, bytes) and self.short_side_px else None
        if header is not None and self.short_side_px and header.height * header.width <= self.max_image_px:
            shrinks = min(header.height, header.width) / (2 * self.short_side_px)
            fraction = next(part for part in FRACTIONS if part <= max(1.0, shrinks))
            if fraction > 1:
                with contextlib.suppress(ValueError):  # damaged; Pillow, below, may still read it
                    return Image.fromarray(decode_jpeg(cast(bytes, raw), header, fraction=fraction))
        return decode_samples(raw, max_image_px=self.max_image_px)


def _suffix(raw: RawImage) -> str:
    """Return the suffix for an image without a file name: .jpg for JPEG, .png for pixels and for other formats.

    Decoders look at the content, so any suffix of an image serves.
    """
    return ".jpg" if isinstance(raw, bytes) and raw.startswith(b"\xff\xd8") else ".png"


def _with_jpeg_suffix(name: str) -> str:
    """Return the name with `.jpg` appended to another suffix, so that a.png and a.jpg stay two images."""
    return name if PurePosixPath(name).suffix.lower() in {".jpg", ".jpeg"} else f"{name}.jpg"


def _shrinks(size: tuple[int, ...], short_side_px: int) -> bool:
    """Return True if an image of this size is shrunk; one that stays too long for a JPEG is stored as it is."""
    return min(size) > short_side_px and max(size) * short_side_px <= min(size) * MAX_JPEG_SIDE_PX


def _shrink(image: Image.Image, short_side_px: int, quality: int) -> bytes:
    """Return the image as a JPEG file with this short side."""
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


def _add_all(writer: ShardWriter, encoder: _Encoder, workers: int, on_progress: Progress) -> list[BadImage]:
    """Add every good image of the source to the shards; return the bad ones."""
    labels = encoder.source.labels
    bad: list[BadImage] = []
    for number, image in enumerate(_encode_all(encoder, workers)):
        if isinstance(image, BadImage):
            bad.append(image)
        else:
            writer.add(number, *image, label=labels[number] if labels else None)
        on_progress(number + 1, len(encoder.source))
    return bad


def _encode_all(encoder: _Encoder, workers: int) -> Iterator[tuple[str, bytes] | BadImage]:
    """Yield the result of each image in order; each worker is at most 8 images ahead."""

    def load(indices: Iterable[int]) -> DataLoader[tuple[str, bytes] | BadImage]:
        """Return a loader with new workers for these images."""
        return DataLoader(
            encoder,
            batch_size=None,
            sampler=indices,
            num_workers=workers,
            collate_fn=identity,
            prefetch_factor=8 if workers else None,
            worker_init_fn=init_worker,
        )

    return iter(ResilientBatches(load, range(len(encoder.source))))


def unpack(location: str | Path, out: str | Path, *, on_progress: Progress = lambda done, total: None) -> PackResult:
    """Write the images of shards as files under their names, byte for byte as they were packed.

    If class folders don't show the labels, labels.csv is written too, a list that `open_source` reads. No file is
    written outside `out`: `..` in a name becomes `_up`, a leading `/` becomes `_root`.

    Args:
        location: Shards, as `open_shards` takes them.
        out: Folder to write; must not exist, or be empty.
        on_progress: Called after each image.

    Raises:
        ValueError: No shards, or two different images have the same name.
        OSError: Writing failed, for example on a full disk.

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
    """Return the name as a relative path that never leads upwards."""
    safe = {"/": "_root", "//": "_root", "..": "_up"}
    return "/".join(safe.get(part, part) for part in PurePosixPath(name).parts)


def _write_new(path: Path, raw: bytes) -> None:
    if path.is_file() and path.read_bytes() != raw:  # the same image twice is fine: lists can repeat a file
        raise ValueError(f"out={path}: two different images have this name; rename one and pack again")
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming_path(path):
        path.write_bytes(raw)


def _write_labels(folder: Path, source: ShardSource, written: list[int]) -> None:
    """Write labels.csv, unless the class folders of the names give the same labels."""
    if source.labels is None or labels_from_names(source.names) == (source.labels, source.class_names):
        return
    with (folder / LABELS_NAME).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerow(("path", "label"))
        csv.writer(file).writerows((_inside(source.names[i]), source.class_names[source.labels[i]]) for i in written)
