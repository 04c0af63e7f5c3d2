"""Split labelled images for training, choosing and testing: balanced subsets, id lists and held-out parts, by seed."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from mocokit import distributed
from mocokit.data.decode.deep import ValueRanges
from mocokit.data.sources.identity import DataIdentity
from mocokit.data.sources.left_out import describe_source, log_line
from mocokit.data.sources.limits import MAX_IMAGE_PX
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.overlap import find_overlap
from mocokit.data.sources.sources import ImageSource
from mocokit.data.value_range import measure_ranges
from mocokit.data.views import ImageReader
from mocokit.evaluate.features import EvaluationView, LabelledImages, choose_images, draw_indices
from mocokit.evaluate.unreadable import MAX_BAD_SHARE
from mocokit.randomness import Purpose, generator

LOGGER = logging.getLogger("mocokit")


def balanced_subset(images: LabelledImages, count: int, *, seed: int) -> list[int]:
    """Return `count` random images, equally many of each class as far as class sizes allow, at least one of each.

    Classes drawn at random get the remainder of the division. With the same seed, a larger subset contains a smaller
    one, except for that remainder.
    """
    members = _by_class(images)
    quotas = _water_fill([len(member) for member in members.values()], max(count, len(members)), seed=seed)
    chosen: list[int] = []
    for (label, member), quota in zip(members.items(), quotas, strict=True):
        order = generator(seed, Purpose.SUBSET, 1 + label).permutation(len(member))
        chosen += [member[row] for row in order[:quota]]
    return sorted(chosen)


def _by_class(images: LabelledImages) -> dict[int, list[int]]:
    """Return the positions of the images of each class, by class number in ascending order."""
    members: dict[int, list[int]] = {}
    for index in images.indices:
        members.setdefault(images.labels[index], []).append(index)
    return dict(sorted(members.items()))


def _water_fill(sizes: Sequence[int], total: int, *, seed: int) -> list[int]:
    """Return one quota per class: at most its size, as equal as possible, with sum min(total, sum(sizes))."""
    total = min(total, sum(sizes))
    level = 0
    while sum(min(size, level + 1) for size in sizes) <= total and level < max(sizes):
        level += 1
    quotas = [min(size, level) for size in sizes]
    larger = [number for number, size in enumerate(sizes) if size > level]
    rest = total - sum(quotas)
    for number in generator(seed, Purpose.SUBSET, 1, 1).permutation(len(larger))[:rest]:
        quotas[larger[number]] += 1
    return quotas


def fraction_of(images: LabelledImages, fraction: float, *, seed: int) -> LabelledImages:
    """Return a balanced part of the images; all of them if `fraction` is 1.

    Raises:
        ValueError: `fraction` is not above 0 and at most 1.

    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: must be above 0 and at most 1, for example 0.01")
    if fraction == 1:
        return images
    return images.only(balanced_subset(images, round(fraction * len(images.indices)), seed=seed))


def hold_out(images: LabelledImages, share: float, *, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Return (rest, held-out part). Each class of two or more images gives about `share`: at least one, never all.

    Raises:
        ValueError: No class has two images.

    """
    held: list[int] = []
    for label, member in _by_class(images).items():
        count = min(len(member) - 1, max(1, round(share * len(member))))
        order = generator(seed, Purpose.SUBSET, 1 + label, 1).permutation(len(member))
        held += [member[row] for row in order[:count]]
    if not held:
        raise ValueError(
            "fraction: one labelled image per class leaves none to choose a rate with; use a larger fraction"
        )
    rest = np.setdiff1d(images.indices, held).tolist()
    return images.only(rest), images.only(sorted(held))


def open_labelled(
    data: str | Path,
    test: str | Path | None,
    view: EvaluationView,
    *,
    max_bad_share: float = MAX_BAD_SHARE,
    on_data: Callable[[str], object] = log_line,
) -> tuple[LabelledImages, LabelledImages | None]:
    """Open the training images, and the test images if `test` is given or `data` is a split that has some.

    `on_data` is called with a line about each of the two: how many images, of which classes, what was left out.

    Samples of more than 8 bits are read with the view's value ranges; sample types that it has no range for are
    measured on the training images.

    Raises:
        ValueError: One of the two has no labels, or `test` has a class that is missing from `data`.

    """
    reader = _reader(data, view.value_ranges)
    on_data(f"data: {describe_source(reader.source)}")
    measured = distributed.from_main(
        lambda: measure_ranges(reader.source, max_image_px=reader.max_image_px, seed=0, known=view.value_ranges)
    )
    for line in measured.lines_beside(view.value_ranges) if distributed.is_main() else ():
        LOGGER.warning(line)
    reader.ranges = measured.ranges
    images = choose_images(reader, view, location=str(data), role="training", max_bad_share=max_bad_share)
    test = test or getattr(reader.source, "test_part", "")
    if not test:
        return images, None
    test_reader = _reader(test, reader.ranges, setting="test")
    tested = choose_images(
        test_reader,
        view,
        class_names=images.class_names,
        setting="test",
        location=str(test),
        role="test",
        max_bad_share=max_bad_share,
    )
    on_data(f"test: {describe_source(test_reader.source, tested.labels, tested.class_names)}; from {test}")
    return images, tested


def warn_of_overlap(train: LabelledImages, test: LabelledImages | None, identities: Sequence[DataIdentity]) -> None:
    """Log a warning if test images are training images too.

    Args:
        train: Training images.
        test: Test images; None: held out of the training images, which tells nothing.
        identities: Identity of the source of `train`, then of `test`.

    """
    if test is None:
        return
    overlap = find_overlap(train.reader.source, test.reader.source, *identities)
    if overlap.shared:
        LOGGER.warning("test: %s; the accuracy on them tells nothing about new images", overlap)


def train_and_test(
    images: LabelledImages, test: LabelledImages | None, *, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Return (training images, test images); if `test` is None, a random tenth of `images` is held out by `seed`."""
    if test is not None:
        return images, test
    held = draw_indices(len(images.indices), max(1, len(images.indices) // 10), seed=seed)
    rest = np.setdiff1d(images.indices, held).tolist()
    return images.part("training", rest), images.part("test", held)


def open_train_and_test(
    data: str | Path,
    test: str | Path | None,
    view: EvaluationView,
    *,
    seed: int,
    max_bad_share: float = MAX_BAD_SHARE,
    on_data: Callable[[str], object] = log_line,
) -> tuple[LabelledImages, LabelledImages]:
    """Open both sets and split them by one seed; arguments and errors of `open_labelled`."""
    opened = open_labelled(data, test, view, max_bad_share=max_bad_share, on_data=on_data)
    return train_and_test(*opened, seed=seed)


def _reader(location: str | Path, ranges: ValueRanges, *, setting: str = "data") -> ImageReader:
    source = open_source(location, setting=setting)
    return ImageReader(source, max_image_px=MAX_IMAGE_PX, seed=0, ranges=ranges)


def read_id_list(path: str | Path, source: ImageSource) -> list[int]:
    """Return the positions of the images listed in a text file, such as SimCLR's `imagenet_subsets/1percent.txt`.

    Each line names one image by its file name or the end of its path. If every line is a number below the number of
    images, lines are positions instead.

    Raises:
        ValueError: The file can't be read, or a line matches no image or several.

    """
    try:
        lines = [line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"ids={path}: can't be read ({error})") from error
    wanted = [line for line in lines if line]
    if wanted and all(line.isdecimal() and int(line) < len(source) for line in wanted):
        return sorted({int(line) for line in wanted})
    by_file: dict[str, list[int]] = {}
    for index in range(len(source)):
        by_file.setdefault(PurePosixPath(source.name(index)).name, []).append(index)
    return sorted({_find(line, by_file, source, path) for line in wanted})


def _find(line: str, by_file: dict[str, list[int]], source: ImageSource, path: str | Path) -> int:
    found = [
        index
        for index in by_file.get(PurePosixPath(line).name, [])
        if f"/{source.name(index)}".replace(":", "/").endswith(f"/{line.lstrip('/')}")
    ]
    if len(found) != 1:
        what = "no image of the data has that name" if not found else "several images have that name; write more of it"
        raise ValueError(f"ids={path}: {line}: {what}")
    return found[0]
