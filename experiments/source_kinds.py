"""Write the same small photographs as every kind of image source that mocokit reads."""

import gzip
import pickle
import shutil
import struct
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.packing.pack import pack
from mocokit.data.sources.objects import ImageList
from mocokit.data.sources.open_source import ImageData
from mocokit.run.demo import sample_path

CLASSES = ("brick", "cat", "coffee", "grass")


class OwnSource:
    """An image source of a user's: reads files by their paths.

    Args:
        paths: The files.

    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.labels = tuple(CLASSES.index(path.parent.name) for path in paths)
        self.class_names = CLASSES

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the file's path."""
        return str(self.paths[index])

    def read(self, index: int) -> bytes:
        """Return the file's bytes."""
        return self.paths[index].read_bytes()


def write_sources(folder: Path, *, per_class: int = 8) -> dict[str, ImageData]:
    """Write `per_class` tiles of each of CLASSES in every layout; return what to open, by the kind of source.

    All have labels. Every kind holds the same pixels, but for IDX (gray, 28 px) and CIFAR
    (32 px).
    """
    photos = _extract(folder / "photos", per_class)
    paths = sorted(photos.rglob("*.jpg"))
    return {
        "folder": str(photos),
        "list": _write_list(folder / "list.txt", paths),
        "table#label=": _write_table(folder / "table.csv", paths),
        "zip": shutil.make_archive(str(folder / "photos"), "zip", photos),
        "tar": shutil.make_archive(str(folder / "photos"), "tar", photos),
        "tar of tars": _write_nested_tar(folder / "nested.tar", photos),
        "shards": _pack(photos, folder / "shards"),
        "shards of other tools": _write_webdataset(folder / "webdataset", paths),
        "shards behind a url": f"file://{_pack(photos, folder / 'remote')}",
        "IDX": _write_idx(folder / "t-images-idx3-ubyte.gz", paths),
        "CIFAR": _write_cifar(folder / "cifar-10-batches-py", paths),
        "images in memory": _in_memory(paths),
        "own object": OwnSource(paths),
    }


def _extract(folder: Path, per_class: int) -> Path:
    with zipfile.ZipFile(sample_path("val")) as archive:
        for name in CLASSES:
            for member in [member for member in archive.namelist() if member.startswith(f"{name}/")][:per_class]:
                archive.extract(member, folder)
    return folder


def _label(path: Path) -> int:
    return CLASSES.index(path.parent.name)


def _write_list(file: Path, paths: list[Path]) -> str:
    file.write_text("".join(f"{path} {path.parent.name}\n" for path in paths), encoding="utf-8")
    return str(file)


def _write_table(file: Path, paths: list[Path]) -> str:
    rows = "".join(f"{path},{number},{path.parent.name}\n" for number, path in enumerate(paths))
    file.write_text("file,patient,species\n" + rows, encoding="utf-8")
    return f"{file}#label=species"


def _write_nested_tar(file: Path, photos: Path) -> str:
    with tarfile.open(file, "w") as outer:
        for folder in sorted(photos.iterdir()):
            inner = BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for path in sorted(folder.iterdir()):
                    archive.add(path, path.name)
            _add(outer, f"{folder.name}.tar", inner.getvalue())
    return str(file)


def _add(archive: tarfile.TarFile, name: str, raw: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(raw)
    archive.addfile(member, BytesIO(raw))


def _pack(photos: Path, out: Path) -> str:
    pack(photos, out, max_image_px=10**6, shard_bytes=16 * 2**10, on_data=lambda line: None)
    return str(out)


def _write_webdataset(folder: Path, paths: list[Path]) -> str:
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"train-{shard:03d}.tar", "w") as archive:
            for number, path in enumerate(paths[shard::2]):
                _add(archive, f"{shard}{number:04d}.jpg", path.read_bytes())
                _add(archive, f"{shard}{number:04d}.cls", str(_label(path)).encode())
    return f"{folder}/train-{{000..001}}.tar"


def _pixels(path: Path, side_px: int, mode: str) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode).resize((side_px, side_px)))


def _write_idx(file: Path, paths: list[Path]) -> str:
    pixels = np.stack([_pixels(path, 28, "L") for path in paths])
    labels = np.array([_label(path) for path in paths], np.uint8)
    for place, array in ((file, pixels), (file.with_name(file.name.replace("images-idx3", "labels-idx1")), labels)):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        place.write_bytes(gzip.compress(header + array.tobytes()))
    return str(file)


def _write_cifar(folder: Path, paths: list[Path]) -> str:
    folder.mkdir()
    for number in (1, 2):
        part = paths[number - 1 :: 2]
        rows = np.stack([_pixels(path, 32, "RGB").transpose(2, 0, 1).reshape(-1) for path in part])
        batch = {"data": rows, "labels": [_label(path) for path in part]}
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(batch, protocol=2))
    return str(folder)


def _in_memory(paths: list[Path]) -> ImageList:
    """Return every second image as an array, the others as Pillow's."""
    images: list[Image.Image | NDArray[np.uint8]] = []
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")) if number % 2 else image.copy())
    return ImageList(images, labels=tuple(map(_label, paths)), class_names=CLASSES)
