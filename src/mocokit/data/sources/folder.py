"""Source of the images in a folder tree."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from mocokit.data.sources.layout import read_layout
from mocokit.data.sources.left_out import LeftOut, LeftOutTally
from mocokit.data.sources.own_output import is_own_output
from mocokit.data.sources.sources import FileSource
from mocokit.data.sources.suffixes import is_hidden, is_image_name, list_suffixes


def open_folder(root: Path) -> FileSource:
    """Return a source of all images below `root`, at any depth, sorted by path; symbolic links are followed.

    If `root` holds the parts of a split (`train`, `val`), the images are those of the training part.

    Raises:
        ValueError: No images, or only parts of a split that are not for training.
        OSError: `root` can't be listed.

    """
    tally = LeftOutTally()
    names = tuple(sorted(_walk(root, tally)))
    if not names:
        raise ValueError(f"data={root}: no images below this folder; {_hint(root, tally.result())}")
    try:
        layout = read_layout(names, tally)
    except ValueError as error:
        raise ValueError(f"data={root}: {error}") from error
    _tell_empty_classes(root, layout.class_names, layout.names, tally)
    tally.forget_twins(names)
    return FileSource(
        root=root,
        names=layout.names,
        labels=layout.labels,
        class_names=layout.class_names,
        left_out=tally.result(),
        label_note=layout.note,
        test_part=str(root / layout.test_part) if layout.test_part else "",
    )


def _walk(root: Path, tally: LeftOutTally) -> list[str]:
    """Return the paths of the image files below `root`; visit each real folder once, since links can form a loop.

    Files that are no images, folders that can't be listed and links that lead nowhere are counted in `tally`. Needs no
    system call per file, which would take hours on a slow network disk: scandir tells links from files.

    Raises:
        OSError: `root` itself can't be listed.

    """
    seen: set[str] = set()
    found = []
    waiting = [""]
    while waiting:
        below = waiting.pop()
        real = os.path.realpath(root / below)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(root / below) as listed:
                entries = list(listed)
        except OSError as error:
            if not below:
                raise
            tally.add("unreadable folders", below.rstrip("/"), error.strerror or "")
            continue
        if below and is_own_output({entry.name for entry in entries}):
            tally.add("folders that mocokit wrote", below.rstrip("/"), "their pictures are no data")
            continue
        folders = []
        for entry in entries:
            name = below + entry.name
            if _is_folder(entry):
                folders.append(f"{name}/")
            elif is_image_name(name):  # or a link that leads nowhere, which will be a bad image
                found.append(name)
            elif entry.is_symlink() and not (root / name).exists() and not is_hidden(name):
                tally.add("broken links", name)
            else:
                tally.add_file(name)
        waiting += reversed(folders)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a folder that may not be entered
        return False


def _tell_empty_classes(root: Path, class_names: Sequence[str], names: Sequence[str], tally: LeftOutTally) -> None:
    """Count folders without images that lie beside the class folders."""
    if not class_names:
        return
    first = next(name for name in names if set(Path(name).parts[:-1]) & set(class_names))
    depth = next(depth for depth, part in enumerate(Path(first).parts) if part in class_names)
    above = root.joinpath(*Path(first).parts[:depth])
    filled = {Path(name).parts[depth] for name in names if len(Path(name).parts) > depth + 1}
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
