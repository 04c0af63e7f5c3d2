"""Labels from the layout of a data set: class folders, the parts of a split, and images that lie beside them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mocokit.data.sources.left_out import LeftOutTally

MAX_STRAY_SHARE = 0.1
"""Images beside class folders that may be left out, as a share of all; with more, the folders are no classes."""

_PART = re.compile(
    r"(?P<before>(?:.*[ _.-])?)"
    r"(?:(?P<train>train|training|trainset|trainval|trn)"
    r"|(?P<test>val|valid|validation|test|testing|testset|valset|eval|dev|tst|holdout|held[ _-]?out)"
    r"|(?P<other>unlabell?ed|extra))"
    r"(?P<after>(?:data|images?|imgs?|photos?|pictures?|files?)?(?:\d{4})?(?:[ _.-].*)?)",
    re.IGNORECASE,
)
"""Name of a folder with a part of a split: train, Validation, train2017, test_images, DIV2K_train_HR."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Images to use, and their labels, as the folders of a data set tell."""

    names: tuple[str, ...]
    """Names of the images to use, in the given order."""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    note: str = ""
    """Where the labels come from if that is not plain, or why there are none."""
    test_part: str = ""
    """Folder of the images to test on; empty without one."""


def label_ids(classes: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return each image's class number, and the class names in sorted order.

    Args:
        classes: Class name of each image.

    """
    class_names = tuple(sorted(set(classes)))
    number = {name: index for index, name in enumerate(class_names)}
    return tuple(number[name] for name in classes), class_names


def labels_from_names(names: Sequence[str]) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Return (labels, class names) from class folders, or (None, ()) if the layout has none.

    The class folder is the first one below the path that all names share. If any image lies above that level, the
    folders are not taken for classes.
    """
    folders = folders_of(names)
    shared = _shared_depth(folders)
    if any(len(folder) <= shared for folder in folders):
        return None, ()
    return label_ids([folder[shared] for folder in folders])


def labels_among(names: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the number of each image's class in `class_names`, by the folder that has a class's name; else None.

    Unlike labels_from_names, this works for a folder of one class. The folder is at the same depth for all images.
    """
    number = {name: index for index, name in enumerate(class_names)}
    folders = folders_of(names)
    distinct = set(folders)
    for depth in range(min(map(len, distinct), default=0)):
        if all(folder[depth] in number for folder in distinct):
            return tuple(number[folder[depth]] for folder in folders)
    return None


def folders_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the folders that each path leads through, outermost first: those of `a/b/c.jpg` are a and b.

    As pathlib gives them, in a tenth of the time: a data set has millions of files and few folders.
    """
    known: dict[str, tuple[str, ...]] = {}
    found = []
    for name in names:
        above = name[: name.rfind("/") + 1]
        folders = known.get(above)
        if folders is None:
            folders = known[above] = PurePosixPath(above).parts
        found.append(folders)
    return found


def read_layout(names: Sequence[str], tally: LeftOutTally) -> Layout:
    """Return the images to use and their labels; count in `tally` the images that are left out.

    - Folders named like the parts of a split (train, val, test, ...) are one: its training part is used.
    - A few images beside several class folders are left out. If there are many, nothing is, and there are no labels.

    Raises:
        ValueError: A split without a training part; the message names its parts.

    """
    above = folders_of(names)
    shared = _shared_depth(above)
    prefix = "/".join(above[0][:shared]) if above else ""
    folder_of = [folders[shared] if len(folders) > shared else None for folders in above]
    counts = Counter(folder_of)
    num_strays = counts.pop(None, 0)
    if not counts:
        return Layout(names=tuple(names), labels=None, class_names=(), note=_one_folder(prefix))
    strays = [name for name, folder in zip(names, folder_of, strict=True) if folder is None]
    few = num_strays <= MAX_STRAY_SHARE * len(names)
    folders = [str(folder) for folder in sorted(map(str, counts))]
    if few and _is_split(folders):
        return _training_part(names, folder_of, folders, prefix, strays, tally)
    if not few:
        note = f"since {num_strays:,} lie beside the folders {_some(folders)}: {_some(strays)}"
        return Layout(names=tuple(names), labels=None, class_names=(), note=note)
    kept = [(name, folder) for name, folder in zip(names, folder_of, strict=True) if folder is not None]
    if len(folders) == 1:  # a stray image above a folder of folders
        inner = read_layout([name for name, _ in kept], tally)
        if inner.labels is None and not inner.test_part:
            return Layout(names=tuple(names), labels=None, class_names=(), note=inner.note)
        _tell_strays(strays, tally)
        return inner
    _tell_strays(strays, tally)
    labels, class_names = label_ids([folder for _, folder in kept])
    note = _parts_in_classes([name for name, _ in kept], shared)
    return Layout(names=tuple(name for name, _ in kept), labels=labels, class_names=class_names, note=note)


def _parts_in_classes(names: Sequence[str], depth: int) -> str:
    """Return a note if the folders in the class folders, which are at `depth`, are parts of a split; else ""."""
    paths = [PurePosixPath(name).parts for name in names]
    folders = sorted({parts[depth + 1] for parts in paths if len(parts) > depth + 2})
    return f"all of the parts {_some(folders)} in each class" if _is_split(folders) else ""


def _shared_depth(folders: Sequence[tuple[str, ...]]) -> int:
    """Return the number of leading folders that all paths share."""
    distinct = set(folders)
    if not distinct:
        return 0
    first = min(distinct)
    last = max(distinct)
    differ = (depth for depth, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
    return next(differ, min(len(first), len(last)))


def _tell_strays(strays: Sequence[str], tally: LeftOutTally) -> None:
    for name in strays:
        tally.add("images beside the folders", name, "they belong to none of them; move each into one to use it")


def _one_folder(prefix: str) -> str:
    return f"all in the folder {prefix}" if prefix else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _part_of(folder: str) -> tuple[str, str]:
    """Return (train, test or other; the rest of the name) for a folder named like a part of a split; else ("", "")."""
    found = _PART.fullmatch(folder)
    if found is None:
        return "", ""
    rest = f"{found['before']} {re.sub(r'[0-9]{4}', '', found['after'])}".lower()
    return next(kind for kind in ("train", "test", "other") if found[kind]), rest


def _is_split(folders: Sequence[str]) -> bool:
    """Return True if a training and a test part differ in that word alone, or if all folders are parts of a split.

    So `train_images` beside `test_images` is a split, and `train_station` beside `test_tube` is not.
    """
    parts = [_part_of(folder) for folder in folders]
    rests = {kind: {rest for found, rest in parts if found == kind} for kind in ("train", "test")}
    if rests["train"] & rests["test"]:
        return True
    return len(folders) > 1 and all(kind for kind, _ in parts) and len({rest for _, rest in parts}) == 1


def _training_part(
    names: Sequence[str],
    folder_of: Sequence[str | None],
    folders: Sequence[str],
    prefix: str,
    strays: Sequence[str],
    tally: LeftOutTally,
) -> Layout:
    """Return the layout of a split's training part; count its other parts as left out."""
    trains = [name for name in folders if _part_of(name)[0] == "train"]
    below = f"{prefix}/" if prefix else ""
    if not trains:
        raise ValueError(
            f"its folders {', '.join(folders)} are parts of a split, none of them for training; name one of them, "
            f"{below}{folders[0]} for example"
        )
    train = min(trains, key=lambda name: (len(name), name))
    by_folder: dict[str, list[str]] = {}
    for name, folder in zip(names, folder_of, strict=True):
        if folder is not None:
            by_folder.setdefault(folder, []).append(name)
    layout = read_layout(by_folder[train], tally)
    tests = [name for name in folders if _part_of(name)[0] == "test"]
    tests.sort(key=lambda name: ("val" not in name.lower(), len(name), name))
    usable = [name for name in tests if _has_classes(by_folder[name], layout.class_names)]
    test = usable[0] if usable and layout.labels is not None else ""
    for folder in folders:
        if folder != train:
            why = "the split's images to test on" if folder == test else "another part of the split; name it to use it"
            tally.add(f"images in {below}{folder}/", by_folder[folder][0], why, count=len(by_folder[folder]))
    _tell_strays(strays, tally)
    note = f"{below}{train}/, the training part of the split" + (f"; {layout.note}" if layout.note else "")
    return Layout(
        names=layout.names,
        labels=layout.labels,
        class_names=layout.class_names,
        note=note,
        test_part=f"{below}{test}" if test else "",
    )


def _has_classes(names: Sequence[str], class_names: Sequence[str]) -> bool:
    """Return True if a test part has class folders, all of them among the training part's."""
    return labels_among(names, class_names) is not None
