"""Open the image source for a location on disk or behind a url, or for Python objects."""

import contextlib
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.sources.archives import open_tar, open_zip
from mocokit.data.sources.objects import ImageList
from mocokit.data.sources.shard_index import INDEX_NAME
from mocokit.data.sources.shards import is_pattern, is_url, open_shards
from mocokit.data.sources.sources import ImageSource, describe_kind, is_pixels, open_folder, open_idx, open_list
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


def open_source(data: ImageData) -> ImageSource:
    """Return the image source for `data`.

    Args:
        data: A location: a folder, a .txt/.csv/.tsv list of paths, a .zip, a .tar, an IDX file, or tar shards, local or
            behind a url. Or a sequence of PIL images or uint8 arrays. Or an object that fulfils `ImageSource`.

    Raises:
        ValueError: Nothing at this location, no images, an unknown kind of file, or an object that is no image source.

    """
    if isinstance(data, str | Path):
        return _open_location(data)
    if isinstance(data, Sequence) and not hasattr(data, "read"):  # a source may be a sequence too
        return _require_source(ImageList(cast(Sequence[Image.Image], data)))
    return _require_source(data)


def _open_location(location: str | Path) -> ImageSource:
    text = str(location)
    if is_url(text) or is_pattern(text):
        return open_shards(text)
    path = Path(location).expanduser()
    name = path.name.lower()
    if path.is_dir():
        return open_shards(text) if (path / INDEX_NAME).is_file() else open_folder(path)
    require(path.is_file(), "data", location, "no such file or folder")
    if name.endswith((".txt", ".csv", ".tsv")):
        return open_list(path)
    if name.endswith(".zip"):
        return open_zip(path)
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        return open_tar(path)
    if "idx3-ubyte" in name:
        return open_idx(path)
    raise ValueError(
        f"data={location}: not a kind of data that mocokit reads; give a folder, a .txt/.csv/.tsv list of paths, "
        "a .zip, a .tar, shards by a pattern such as train-{000..127}.tar, or an IDX file (*-images-idx3-ubyte[.gz])"
    )


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
