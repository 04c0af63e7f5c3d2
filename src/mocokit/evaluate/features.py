"""Frozen features of a data set.

Shapes: M images, D feature dimension.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mocokit.data.loading.loader import build_loader, in_batches
from mocokit.data.views import ImageReader, PlainViews
from mocokit.engine.precision import Precision
from mocokit.randomness import Purpose, permutation


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features and labels of the images that could be read."""

    rows: Tensor
    """(M, D) float32 on the CPU."""
    labels: Tensor
    """(M,)"""
    extract_s: float = 0.0
    """What it took to compute them (seconds), also when they come from a cache."""


@dataclass(frozen=True, kw_only=True)
class EvaluationView:
    """How images are read for evaluation."""

    size_px: int
    crop_ratio: float
    """Side of the central crop over the resized short side."""
    num_workers: int
    """Loader processes."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Some images of a labelled source, as they are read for evaluation."""

    reader: ImageReader
    indices: tuple[int, ...]
    labels: tuple[int, ...]
    """Of all images of the source."""
    class_names: tuple[str, ...]
    view: EvaluationView

    def only(self, indices: Sequence[int]) -> "LabelledImages":
        """The same, with other images of the source."""
        return replace(self, indices=tuple(indices))


def choose_images(
    reader: ImageReader,
    view: EvaluationView,
    *,
    indices: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
) -> LabelledImages:
    """All images of the reader's source, or those at `indices`.

    Args:
        reader: Reads the images.
        view: How to read them.
        indices: Images to take; None: all.
        class_names: Number the classes as in this other source; None: as in this one.

    Raises:
        ValueError: The source has no labels, or a class that `class_names` lacks.

    """
    source = reader.source
    if source.labels is None:
        raise ValueError("data: no labels; give class folders, a list with labels, or IDX files with their labels")
    labels = source.labels
    names = source.class_names if class_names is None else tuple(class_names)
    if class_names is not None:
        unknown = sorted(set(source.class_names) - set(class_names))
        if unknown:
            raise ValueError(f"test: classes {unknown[:5]} are not among those of the training images")
        labels = tuple(class_names.index(source.class_names[label]) for label in labels)
    return LabelledImages(
        reader=reader,
        indices=tuple(range(len(labels)) if indices is None else indices),
        labels=labels,
        class_names=names,
        view=view,
    )


def draw_indices(size: int, count: int, *, seed: int) -> list[int]:
    """`count` of 0 .. size-1 at random, all when there are fewer; the same for the same seed."""
    return sorted(int(index) for index in permutation(seed, Purpose.SUBSET, size)[:count])


@torch.no_grad()
def extract_features(
    embed: Callable[[Tensor], Tensor], images: LabelledImages, *, device: torch.device, batch_size: int = 256
) -> Features:
    """Features of `images`.

    Args:
        embed: (n, 3, H, W) uint8 pixels on `device` -> (n, D).
        images: What to read.
        device: Where `embed` computes.
        batch_size: n.

    """
    views = PlainViews(images.reader, size_px=images.view.size_px, crop_ratio=images.view.crop_ratio)
    loader = build_loader(views, in_batches(images.indices, batch_size), num_workers=images.view.num_workers)
    start = time.perf_counter()
    rows = torch.empty(0)
    labels = list[int]()
    for pixels, indices in loader:
        if len(indices) == 0:
            continue
        part = embed(pixels.to(device, non_blocking=True)).float().cpu()  # (n, D)
        if not labels:
            rows = torch.empty(len(images.indices), part.shape[1])  # once: M x D may be most of the memory
        rows[len(labels) : len(labels) + len(part)] = part
        labels += [images.labels[index] for index in indices.tolist()]
    if not labels:
        raise ValueError("data: none of the images to evaluate can be read")
    return Features(rows=rows[: len(labels)], labels=torch.tensor(labels), extract_s=time.perf_counter() - start)


def embed_with(
    backbone: nn.Module, pixels: nn.Module, precision: Precision | None = None
) -> Callable[[Tensor], Tensor]:
    """Embedding by a frozen backbone; it is in eval mode during each call and as it was afterwards."""
    autocast = contextlib.nullcontext if precision is None else precision.autocast

    def embed(images: Tensor) -> Tensor:
        """(n, 3, H, W) uint8 -> (n, D)"""
        was_training = backbone.training
        backbone.eval()
        with autocast():
            features: Tensor = backbone(pixels(images))
        backbone.train(was_training)
        return features

    return embed


def embed_pixels(pixels: nn.Module) -> Callable[[Tensor], Tensor]:
    """The baseline without a network: the pixels as a network would read them, flattened to a row."""

    def embed(images: Tensor) -> Tensor:
        """(n, 3, H, W) uint8 -> (n, 3 H W)"""
        rows: Tensor = pixels(images)
        return rows.flatten(1)

    return embed
