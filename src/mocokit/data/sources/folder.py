"""Source of the images in a folder tree."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from mocokit.data.sources.folder_cache import Listing, recall, remember
from mocokit.data.sources.layout import folders_of, read_layout
from mocokit.data.sources.left_out import LeftOut, LeftOutTally
from mocokit.data.sources.names import Names
from mocokit.data.sources.own_output import is_own_output
from mocokit.data.sources.sources import FileSource
from mocokit.data.sources.suffixes import is_hidden, list_suffixes, readable_suffixes


def open_folder(root: Path) -> FileSource:
    """Return a source of all images below `root`, at any depth, sorted by path; symbolic links are followed.

    If `root` holds the parts of a split (`train`, `val`), the images are those of the training part.

    Raises:
        ValueError: No images, or only parts of a split that are not for training.
        OSError: `root` can't be listed.

    """
    tally = LeftOutTally()
    names = recall(root, tally) or _list_files(root, tally)
    if not names:
        raise ValueError(f"data={root}: no images below this folder; {_hint(root, tally.result())}")
    try:
        layout = read_layout(tuple(names), tally)
    except ValueError as error:
        raise ValueError(f"data={root}: {error}") from error
    _tell_empty_classes(root, layout.class_names, layout.names, tally)
    tally.forget_twins(names)
    return FileSource(
        root=root,
        names=Names(layout.names),
        labels=layout.labels,
        class_names=layout.class_names,
        left_out=tally.result(),
        label_note=layout.note,
        test_part=str(root / layout.test_part) if layout.test_part else "",
    )


def _list_files(root: Path, tally: LeftOutTally) -> list[str]:
    """Return the sorted paths of the image files below `root`, and remember them for the next run if that helps."""
    listing = Listing(root)
    names = sorted(_walk(listing, tally))
    remember(listing, names, tally)
    return names


def _walk(listing: Listing, tally: LeftOutTally) -> list[str]:
    """Return the paths of the image files below `root`; visit each real folder once, since links can form a loop.

    Files that are no images, folders that can't be listed and links that lead nowhere are counted in `tally`. Needs no
    system call per file, which would take hours on a slow network disk: scandir tells links from files. Nor is there a
    Path object per file, which takes longer than the listing.

    Raises:
        OSError: `root` itself can't be listed.

    """
    root = listing.root
    suffixes = readable_suffixes()
    seen: set[str] = set()
    found = list[str]()
    waiting = [("", os.path.realpath(root))]
    while waiting:
        below, real = waiting.pop()
        if real in seen:
            continue
        seen.add(real)
        listing.add(below)
        try:
            with os.scandir(root / below) as listed:
                entries = list(listed)
        except OSError as error:
            if not below:
                raise
            listing.has_all_times = False
            tally.add("unreadable folders", below.rstrip("/"), error.strerror or "")
            continue
        if below and is_own_output({entry.name for entry in entries}):
            tally.add("folders that mocokit wrote", below.rstrip("/"), "their pictures are no data")
            continue
        hidden = is_hidden(below)
        folders = []
        images = []
        for entry in entries:
            name = entry.name
            if entry.is_symlink():
                listing.has_all_times = False
            if _is_folder(entry):
                folders.append((f"{below}{name}/", _real_path(real, entry)))
            elif not hidden and name[name.rfind(".") :].lower() in suffixes and not is_hidden(name):
                images.append(below + name)  # or a link that leads nowhere, which will be a bad image
            else:
                _tell_other(root, below + name, entry, tally)
        images.sort()  # so that the whole list, made of sorted parts, is sorted quickly
        found += images
        waiting += reversed(folders)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a folder that may not be entered
        return False


def _real_path(above: str, entry: os.DirEntry[str]) -> str:
    """Return the path of a folder without links in it, given that of the folder it is in."""
    return os.path.realpath(entry.path) if entry.is_symlink() else f"{above.rstrip(os.sep)}{os.sep}{entry.name}"


def _tell_other(root: Path, name: str, entry: os.DirEntry[str], tally: LeftOutTally) -> None:
    """Count a file that is no image, or a link that leads nowhere."""
    if entry.is_symlink() and not (root / name).exists() and not is_hidden(name):
        tally.add("broken links", name)
    else:
        tally.add_file(name)


def _tell_empty_classes(root: Path, class_names: Sequence[str], names: Sequence[str], tally: LeftOutTally) -> None:
    """Count folders without images that lie beside the class folders."""
    if not class_names:
        return
    known = set(class_names)
    paths = folders_of(names)
    first = next(folders for folders in paths if known.intersection(folders))
    depth = next(depth for depth, folder in enumerate(first) if folder in known)
    above = root.joinpath(*first[:depth])
    filled = {folders[depth] for folders in set(paths) if len(folders) > depth}
    for folder in sorted(above.iterdir()):
        if folder.name not in filled and not is_hidden(folder.name) and os.access(folder, os.R_OK) and folder.is_dir():
            tally.add("folders without images", folder.relative_to(root).as_posix())


def _hint(root: Path, left_out: Sequence[LeftOut]) -> str:
    """Return what to do with a folder without images: the files in it that mocokit could read, or what it reads."""
    files = sorted(path.name for path in root.iterdir())
    if idx := [name for name in files if "idx3-ubyte" in name]:
        return f"did you mean the file {idx[0]}?"
    if cifar := [name for name in files if re.fullmatch(r"cifar-100?-(python|binary|batches-\w+)(\.tar\.gz)?", name)]:
        return f"did you mean {root / cifar[0]}?"
    if tars := [name for name in files if name.endswith(".tar")]:
        return _hint_at_tars(root, tars)
    if other := [name for name in files if name.lower().endswith((".zip", ".csv", ".tsv"))]:
        return f"did you mean the file {other[0]}?"
    found = f"; found: {', '.join(map(str, left_out))}" if left_out else ""
    return f"mocokit reads {list_suffixes()}{found}"


def _hint_at_tars(root: Path, tars: Sequence[str]) -> str:
    """Return the pattern of a set of numbered tar files, or how to unpack others, which are the classes."""
    split = [re.fullmatch(r"(.*?)(\d+)(\D*)", name) for name in tars]
    numbers = [int(found[2]) for found in split if found]
    alike = {(found[1], found[3], len(found[2])) for found in split if found}
    if len(numbers) == len(tars) and len(alike) == 1 and max(numbers) - min(numbers) + 1 == len(tars):
        before, after, width = alike.pop()
        pattern = f"{before}{{{min(numbers):0{width}d}..{max(numbers):0{width}d}}}{after}"
        return f"these tar files are read together by their pattern: '{root / pattern}'"
    return (
        f"it has {len(tars)} tar files, which are read one by one ({root / tars[0]}) or by a pattern with a range such "
        "as {000..127}; for one tar file a class: for f in *.tar; do mkdir ${f%.tar} && tar -xf $f -C ${f%.tar}; done"
    )
