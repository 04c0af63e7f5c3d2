"""Open the image source for a location on disk or behind a url, or for Python objects."""

from pathlib import Path

from mocokit.data.sources.archives import open_tar, open_zip
from mocokit.data.sources.shard_index import INDEX_NAME
from mocokit.data.sources.shards import is_pattern, is_url, open_shards
from mocokit.data.sources.sources import ImageSource, open_folder, open_idx, open_list


def open_source(location: str | Path) -> ImageSource:
    """A folder tree, a .txt/.csv/.tsv list, a .zip, a .tar, an IDX file, or tar shards here or behind a url.

    Raises:
        ValueError: Nothing there, no images in it, or a kind of file that mocokit does not read.

    """
    text = str(location)
    if is_url(text) or is_pattern(text):
        return open_shards(text)
    path = Path(location).expanduser()
    name = path.name.lower()
    if path.is_dir():
        return open_shards(text) if (path / INDEX_NAME).is_file() else open_folder(path)
    if not path.is_file():
        raise ValueError(f"data={location}: no such file or folder")
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


def absolute_location(location: str) -> str:
    """Return a location that holds in any working folder: the absolute path, or the url itself."""
    return location if is_url(location) else str(Path(location).expanduser().absolute())
