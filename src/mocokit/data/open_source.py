"""From what a user writes after --data to an image source."""

from pathlib import Path

from mocokit.data.archives import open_tar, open_zip
from mocokit.data.sources import ImageSource, open_folder, open_idx, open_list


def open_source(location: str | Path) -> ImageSource:
    """A folder tree, a .txt/.csv/.tsv list, a .zip, a .tar, or an IDX file.

    Raises:
        ValueError: Nothing there, no images in it, or a kind of file that mocokit does not read.

    """
    path = Path(location).expanduser()
    name = path.name.lower()
    if path.is_dir():
        return open_folder(path)
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
        "a .zip, a .tar, or an IDX file (*-images-idx3-ubyte[.gz])"
    )
