"""Open the image source for a location on disk or behind a url, or for Python objects."""

import contextlib
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.sources.archives import open_zip
from mocokit.data.sources.cifar import CifarSource, is_cifar_batch, is_cifar_folder, is_cifar_tar, open_cifar
from mocokit.data.sources.file_list import Columns, open_list
from mocokit.data.sources.folder import open_folder
from mocokit.data.sources.idx import open_idx
from mocokit.data.sources.left_out import LeftOutTally
from mocokit.data.sources.limits import refuse_pointer_file
from mocokit.data.sources.objects import ImageList
from mocokit.data.sources.shard_index import INDEX_NAME
from mocokit.data.sources.shards import index_shards, is_pattern, is_url, open_shards
from mocokit.data.sources.sources import FileSource, ImageSource, describe_kind, is_pixels
from mocokit.data.sources.suffixes import unpacking_command
from mocokit.data.sources.tar_archive import build_tar_source, scan_tar
from mocokit.settings import require

ImageData: TypeAlias = str | Path | ImageSource | Sequence[Image.Image | NDArray[np.uint8]]
"""Everything that `open_source` takes."""

_MEMBERS = {
    "__len__": "__len__()",
    "read": "read(index)",
    "name": "name(index)",
    "labels": "labels",
    "class_names": "class_names",
}
"""Members of ImageSource, and what messages call them."""


def open_source(data: ImageData, *, setting: str = "data") -> ImageSource:
    """Return the image source for `data`.

    Args:
        data: A location: a folder, a .txt/.csv/.tsv list of paths, a .zip, a .tar, an IDX file, CIFAR as it is
            distributed, or tar shards, local or behind a url; `data.zip/val` is a folder in an archive, and
            `list.csv#label=species` the column of labels. Or a sequence of PIL images or uint8 arrays. Or an object
            that fulfils `ImageSource`.
        setting: Setting that messages blame, such as `test`.

    Raises:
        ValueError: Nothing at this location, no images, an unknown kind of file, or an object that is no image source.

    """
    if isinstance(data, str | Path):
        try:
            return _open_location(data)
        except ValueError as error:
            start, equals, rest = str(error).partition("=")
            if start != "data" or setting == "data":
                raise
            raise ValueError(f"{setting}{equals}{rest}") from error
    if isinstance(data, Sequence) and not hasattr(data, "read"):  # a source may be a sequence too
        return _require_source(ImageList(cast(Sequence[Image.Image], data)))
    return _require_source(data)


def _open_location(location: str | Path) -> ImageSource:
    text, columns = _split_columns(str(location))
    path = Path(text).expanduser()
    source = _open_shards_or_folder(text, path) or _open_file(text, path, columns)
    has_columns = isinstance(source, CifarSource) or (isinstance(source, FileSource) and path.is_file())
    require(
        has_columns or columns == Columns(),
        "label_column" if columns.label else "path_column",
        columns.label or columns.path,
        f"only lists (.csv, .tsv) and CIFAR-100 have columns, {text} has none; leave it out",
    )
    return source


def _open_shards_or_folder(text: str, path: Path) -> ImageSource | None:
    """Return the source for a url, a pattern or a folder without columns; None for anything else."""
    if is_url(text) or is_pattern(text):
        return open_shards(text)
    if path.is_dir() and not is_cifar_folder(path):
        return open_shards(text) if (path / INDEX_NAME).is_file() else open_folder(path)
    return None


def _open_file(text: str, path: Path, columns: Columns) -> ImageSource:
    """Return the source for a file, for a folder in an archive, or for CIFAR's folder."""
    if path.is_dir():
        return open_cifar(path, labels=columns.label)
    if is_cifar_batch(path):
        return open_cifar(path.parent, batch=path.name, labels=columns.label)
    archive, inside = _archive_of(path)
    require(archive.is_file(), "data", text, "no such file or folder")
    refuse_pointer_file(archive)
    name = archive.name.lower()
    if name.endswith((".txt", ".csv", ".tsv")) and not inside:
        return open_list(archive, columns)
    if name.endswith((".tar", ".tar.gz", ".tgz")) and is_cifar_tar(archive):
        return open_cifar(archive, batch=inside, labels=columns.label)
    if name.endswith((".zip", ".tar")):
        return open_zip(archive, inside) if name.endswith(".zip") else _open_tar(archive, inside)
    if "idx3-ubyte" in name and not inside:
        return open_idx(archive)
    with archive.open("rb") as file:
        command = unpacking_command(archive, file.read(8))
    if command:
        raise ValueError(
            f"data={text}: compressed, so that its images can't be read in any order, as training needs; unpack it, "
            f"for example: {command}   and give the .tar or the folder that this makes"
        )
    raise ValueError(f"data={text}: not a kind of data that mocokit reads; give {_KINDS}")


_KINDS = (
    "a folder, a .txt/.csv/.tsv list of paths, a .zip, a .tar, shards by a pattern such as train-{000..127}.tar, "
    "an IDX file (*-images-idx3-ubyte[.gz]), or CIFAR's folder or .tar.gz"
)


def _archive_of(path: Path) -> tuple[Path, str]:
    """Return (file, folder in it) for a path below a file, such as data.zip/val; (path, "") for any other."""
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
        if parent.is_dir():
            break
    return path, ""


def _open_tar(path: Path, inside: str) -> ImageSource:
    """Return the source of a tar file: WebDataset's if it has `.cls` files, else of its images by name."""
    tally = LeftOutTally()
    images = scan_tar(path, tally)
    if images.has_classes and images.found and not inside:
        return index_shards([str(path)])
    return build_tar_source(path, images, tally, inside)


_COLUMNS = re.compile(r"(.+)#((?:label|path)=[^&]+(?:&(?:label|path)=[^&]+)*)")


def with_columns(location: str, *, label_column: str = "", path_column: str = "") -> str:
    """Return the location of a list with the columns to read: `a.csv#label=species&path=file`.

    So a location says which labels it means wherever it is written: in a run's config, in rows of results.
    """
    named = {"label": label_column, "path": path_column}
    asked = "&".join(f"{kind}={column}" for kind, column in named.items() if column)
    return f"{location}#{asked}" if asked and location else location


def _split_columns(location: str) -> tuple[str, Columns]:
    """Return the location without the columns that `with_columns` added, and these."""
    found = _COLUMNS.fullmatch(location)
    if found is None or Path(location).exists():
        return location, Columns()
    asked = dict(part.split("=", 1) for part in found[2].split("&"))
    return found[1], Columns(path=asked.get("path", ""), label=asked.get("label", ""))


def _require_source(data: object) -> ImageSource:
    """Return `data`; raise ValueError unless it fulfils ImageSource. Reads the first image."""
    place = describe_data(data)
    missing = [text for member, text in _MEMBERS.items() if not hasattr(data, member)]
    require(
        not missing,
        "data",
        place,
        f"lacks {', '.join(missing)}; give an object that fulfils mocokit.ImageSource, "
        "or a list of PIL images or uint8 arrays",
    )
    source = cast(ImageSource, data)
    require(len(source) > 0, "data", place, "holds no images")
    require(isinstance(source.name(0), str), "data", place, "name(0) must be a string")
    require(
        source.labels is None or _are_labels(source.labels, len(source), len(source.class_names)),
        "data",
        place,
        f"labels must be None or a tuple of {len(source)} ints, each an index into class_names",
    )
    _require_picklable(source, place)
    with contextlib.suppress(OSError):  # a bad image; it is counted when it is used
        image = source.read(0)
        is_raw = isinstance(image, bytes) or is_pixels(image)
        kind = describe_kind(image)
        require(is_raw, "data", place, f"read(0) gives {kind}; must be bytes or a uint8 array (H, W) or (H, W, 3)")
    return source


def _are_labels(labels: object, num_images: int, num_classes: int) -> bool:
    """Return True for a tuple of one int in 0..num_classes - 1 per image."""
    if not isinstance(labels, tuple) or len(labels) != num_images or set(map(type, labels)) != {int}:
        return False
    return bool(min(labels) >= 0 and max(labels) < num_classes)


def _require_picklable(source: ImageSource, place: str) -> None:
    """Raise ValueError if a worker process can't get a copy of the source; needs no memory for arrays in it."""
    try:
        with Path(os.devnull).open("wb") as nowhere:  # arrays go to the callback, which drops them uncopied
            pickle.Pickler(nowhere, protocol=5, buffer_callback=lambda _: None).dump(source)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ValueError(
            f"data={place}: can't be pickled, which loader workers need ({error}); "
            "define its class in a module, and open files and connections in read(), not in __init__"
        ) from error


def describe_data(data: object) -> str:
    """Return how messages call `data`: a location as it was given, an object by its class."""
    return str(data) if isinstance(data, str | Path) else f"{type(data).__name__}(...)"


def absolute_location(location: str) -> str:
    """Return a location that holds in any working folder: the absolute path, or the url itself.

    Only for locations; an ImageSource or a list of images has none, so callers must leave those alone.
    """
    return location if is_url(location) else str(Path(location).expanduser().absolute())
