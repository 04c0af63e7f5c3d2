"""Labelled images of a data set, and their features from a frozen backbone.

Shapes: M images, n images of a batch, D feature dimension.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mocokit.data.batch import BadImage
from mocokit.data.decode.deep import NO_RANGES, ValueRanges
from mocokit.data.loading.loader import build_loader, in_batches
from mocokit.data.sources.layout import labels_among
from mocokit.data.sources.left_out import note_of
from mocokit.data.sources.sources import ImageSource
from mocokit.data.views import ImageReader, PlainViews
from mocokit.engine.health import is_finite
from mocokit.engine.precision import Precision
from mocokit.evaluate.unreadable import MAX_BAD_SHARE, ReadTally
from mocokit.randomness import Purpose, permutation

EXTRACT_BATCH = 256
"""Images that go through the network together."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features and labels of a set of images; unreadable images are missing from both."""

    rows: Tensor
    """(M, D) float32 on the CPU."""
    labels: Tensor
    """(M,) class numbers, in the order of `rows`."""
    extract_s: float = 0.0
    """Seconds that computing the features took; a cached copy keeps the number of its first computation."""
    bad: tuple[BadImage, ...] = ()
    """Images that could not be read."""


@dataclass(frozen=True, kw_only=True)
class EvaluationView:
    """Size and crop at which evaluation reads images."""

    size_px: int
    crop_ratio: float
    """Side of the central crop, as a share of the resized short side."""
    num_workers: int
    """Loader processes; 0: threads."""
    value_ranges: ValueRanges = field(default_factory=lambda: NO_RANGES)
    """Value ranges that the backbone was trained with; other sample types are measured on the training images."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """A subset of a labelled image source, and the view that evaluation reads it with."""

    reader: ImageReader
    indices: tuple[int, ...]
    """Positions of the chosen images in the source."""
    labels: tuple[int, ...]
    """Class number of every image of the source, chosen or not: look one up by its position."""
    class_names: tuple[str, ...]
    view: EvaluationView
    tally: ReadTally
    """Count of the images that could not be read; subsets share it."""
    location: str = ""
    """Where the images are, as the user or the data set named it; empty: unknown."""

    @property
    def num_readable(self) -> int:
        """Number of the chosen images, without those that could not be read so far."""
        return len(self.indices) - len(self.tally.bad.keys() & set(self.indices))

    def only(self, indices: Sequence[int]) -> "LabelledImages":
        """Return a copy that holds the images of the source at `indices` instead."""
        return replace(self, indices=tuple(indices))

    def part(self, role: str, indices: Sequence[int]) -> "LabelledImages":
        """Return a copy with the images at `indices` as a set of its own, such as the "test" images."""
        tally = ReadTally(role, tuple(indices), self.labels, self.class_names, max_share=self.tally.max_share)
        return replace(self, indices=tuple(indices), tally=tally)


def choose_images(
    reader: ImageReader,
    view: EvaluationView,
    *,
    indices: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    role: str = "",
    max_bad_share: float = MAX_BAD_SHARE,
    setting: str = "data",
    location: str = "",
) -> LabelledImages:
    """Return the labelled images of the reader's source.

    Args:
        reader: Reads the images.
        view: Size and crop to read them at.
        indices: Positions of the images to take; None: all images.
        class_names: Class names of the source whose class numbers to use, such as the training images; None: those of
            this source.
        role: Name of the set in messages, "training" or "test"; empty: labelled images.
        max_bad_share: Largest share of the images that may be unreadable.
        setting: Setting that messages blame.
        location: Where the images are, for messages and results.

    Raises:
        ValueError: The source has no labels, or has a class that is missing from `class_names`.

    """
    labels, names = _labels(reader.source, class_names, f"{setting}={location}" if location else setting)
    chosen = tuple(range(len(labels)) if indices is None else indices)
    return LabelledImages(
        reader=reader,
        indices=chosen,
        labels=labels,
        class_names=names,
        view=view,
        tally=ReadTally(role or "labelled", chosen, labels, names, max_share=max_bad_share),
        location=location,
    )


def _labels(
    source: ImageSource, class_names: Sequence[str] | None, place: str
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return (class number of each image, class names), with the numbers of `class_names` if they are given.

    Raises:
        ValueError: The source has no labels, or has a class that is missing from `class_names`.

    """
    own = source.labels
    if class_names is not None and (own is None or set(source.class_names) - set(class_names)):
        # One class folder is no layout of classes by itself, but it is one if the training images have that class.
        among = labels_among(getattr(source, "names", ()), class_names)
        if among is not None:
            return among, tuple(class_names)
    if own is None:
        why = f" ({note_of(source)})" if note_of(source) else ""
        raise ValueError(
            f"{place}: no labels{why}; give class folders (two or more), a list with labels, or IDX files with theirs"
        )
    if class_names is None:
        return own, source.class_names
    unknown = sorted(set(source.class_names) - set(class_names))
    if unknown:
        raise ValueError(
            f"{place}: classes {unknown[:5]} are not among those of the training images ({list(class_names[:5])}"
            f"{', ...' if len(class_names) > 5 else ''})"
        )
    return tuple(class_names.index(source.class_names[label]) for label in own), tuple(class_names)


def draw_indices(size: int, count: int, *, seed: int) -> list[int]:
    """Return `count` random numbers out of 0 .. size-1, sorted; all of them if `count` exceeds `size`.

    The draw depends on `seed` and `size` alone.
    """
    return sorted(int(index) for index in permutation(seed, Purpose.SUBSET, size)[:count])


def extract_features(
    embed: Callable[[Tensor], Tensor], images: LabelledImages, *, device: torch.device, batch_size: int = EXTRACT_BATCH
) -> Features:
    """Return the features of `images`, in the order of `images.indices`, computed by this process alone.

    Args:
        embed: Maps (n, 3, H, W) uint8 pixels on `device` to (n, D) features.
        images: Images to embed; those that can't be read are left out and counted.
        device: Device of `embed`.
        batch_size: n, images per call of `embed`.

    Raises:
        ValueError: None of the images can be read, or too few (see ReadTally).

    """
    features = embed_images(embed, images, device=device, batch_size=batch_size)
    require_images(len(features.rows))
    return features


def require_images(count: int) -> None:
    """Raise ValueError if `count`, the number of images that could be read, is 0."""
    if not count:
        raise ValueError("data: none of the images to evaluate can be read; check the files and their permissions")


@torch.no_grad()
def embed_images(
    embed: Callable[[Tensor], Tensor], images: LabelledImages, *, device: torch.device, batch_size: int
) -> Features:
    """Return what `extract_features` returns; (0, 0) rows if none of the images can be read."""
    views = PlainViews(images.reader, size_px=images.view.size_px, crop_ratio=images.view.crop_ratio)
    loader = build_loader(views, in_batches(images.indices, batch_size), num_workers=images.view.num_workers)
    start = time.perf_counter()
    rows = torch.empty(0, 0)
    labels = list[int]()
    all_bad = list[BadImage]()
    for pixels, indices, bad in loader:
        all_bad += bad
        images.tally.add(bad)
        if len(indices) == 0:  # no image of this batch could be read
            continue
        part = embed(pixels.to(device, non_blocking=True)).float().cpu()  # (n, D)
        if not labels:
            rows = torch.empty(len(images.indices), part.shape[1])  # allocated once: growing it would need twice M x D
        rows[len(labels) : len(labels) + len(part)] = part
        labels += [images.labels[index] for index in indices.tolist()]
    return Features(
        rows=rows[: len(labels)],
        labels=torch.tensor(labels, dtype=torch.long),
        extract_s=time.perf_counter() - start,
        bad=tuple(all_bad),
    )


def embed_with(
    backbone: nn.Module, pixels: nn.Module, precision: Precision | None = None
) -> Callable[[Tensor], Tensor]:
    """Return a function that embeds images with `backbone`.

    Each call puts the backbone in eval mode and restores its mode afterwards.

    Args:
        backbone: Maps normalised pixels to (n, D) features.
        pixels: Normalises uint8 pixels for the backbone.
        precision: Number format of the forward; None: fp32.

    """
    autocast = contextlib.nullcontext if precision is None else precision.autocast

    def embed(images: Tensor) -> Tensor:
        """Map (n, 3, H, W) uint8 pixels to (n, D) features."""
        was_training = backbone.training
        backbone.eval()
        try:
            with autocast():
                features: Tensor = backbone(pixels(images))
        finally:  # the run that is evaluated may go on after an error, and must not train in eval mode
            backbone.train(was_training)
        return features

    return embed


def embed_pixels(pixels: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that flattens normalised pixels to one row per image: the baseline without a network."""

    def embed(images: Tensor) -> Tensor:
        """Map (n, 3, H, W) uint8 pixels to (n, 3 * H * W) rows."""
        rows: Tensor = pixels(images)
        return rows.flatten(1)

    return embed


def are_finite(features: Features) -> bool:
    """Return True if no feature is NaN or infinite; it needs no copy of the rows."""
    return features.rows.numel() == 0 or bool(is_finite(features.rows))


def require_finite(*, holds: bool) -> None:
    """Raise ValueError unless `holds`; of rows with a NaN, argmax and topk would return the first without a word."""
    if not holds:
        raise ValueError(
            "features: some are NaN or infinite, so no accuracy means anything; the weights or BatchNorm's statistics "
            "are damaged: evaluate an earlier checkpoint"
        )


def count_hits(scores: Tensor, labels: Tensor) -> int:
    """Return how many rows of scores (M, L) are largest at their label (M,); a row with a NaN or infinity never is."""
    return int(((scores.argmax(dim=1) == labels) & torch.isfinite(scores).all(dim=1)).sum())
