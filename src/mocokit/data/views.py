"""image -> (query view, key view): two independent draws, whole batches at a time.

Shapes: n rows of a batch, S image size; views (n, 3, S, S) uint8.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mocokit.data.augment import Recipe, apply_params, draw_params, evaluation_crop
from mocokit.data.decode import DecodeError, decode
from mocokit.data.sources import ImageSource
from mocokit.randomness import Purpose, generator

MAX_REPLACEMENTS = 100
"""Draws of a replacement for a bad image before the data set counts as unreadable."""


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that could not be used."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ViewBatch:
    """Two views of each image of (a rank's part of) a batch."""

    query: Tensor
    """(n, 3, S, S) uint8"""
    key: Tensor
    """(n, 3, S, S) uint8"""
    image_ids: Tensor
    """(n,) index of the image that was read, which for a bad image is its replacement."""
    bad: tuple[BadImage, ...] = ()

    def pin_memory(self) -> "ViewBatch":
        """The same batch in page-locked memory; called by torch's DataLoader."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> "ViewBatch":
        """The same batch on `device`, copied without waiting when pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, move: Callable[[Tensor], Tensor]) -> "ViewBatch":
        return ViewBatch(query=move(self.query), key=move(self.key), image_ids=move(self.image_ids), bad=self.bad)


class ImageReader:
    """Reads images by index and replaces bad ones by others.

    Args:
        source: Where images come from.
        max_image_px: Larger images are bad images.
        seed: Seed of the replacement draws.

    """

    def __init__(self, source: ImageSource, *, max_image_px: int, seed: int) -> None:
        self.source, self.max_image_px, self.seed = source, max_image_px, seed

    def read(self, index: int) -> Image.Image:
        """The RGB image; DecodeError when it is bad."""
        try:
            return decode(self.source.read(index), max_image_px=self.max_image_px)
        except OSError as error:  # gone, unreadable, damaged archive member
            raise DecodeError(str(error)) from error

    def read_or_replace(self, index: int, epoch: int) -> tuple[int, Image.Image, list[BadImage]]:
        """The image, or another one of the epoch: (index read, image, what was bad on the way).

        Raises:
            ValueError: MAX_REPLACEMENTS draws in a row were bad.

        """
        bad: list[BadImage] = []
        draws = generator(self.seed, Purpose.REPLACEMENT, epoch, index)
        for _ in range(MAX_REPLACEMENTS):
            try:
                return index, self.read(index), bad
            except DecodeError as error:
                bad.append(BadImage(index=index, name=self.source.name(index), reason=str(error)))
                index = int(draws.integers(len(self.source)))
        raise ValueError(
            f"data: {MAX_REPLACEMENTS} images in a row can't be used, the last being {bad[-1].name} "
            f"({bad[-1].reason}); check the data folder"
        )


class TwoViews(Dataset[ViewBatch]):
    """Maps (epoch, image index) to two augmented views; the draw depends on nothing but seed, epoch, index and view.

    Args:
        reader: Reads the images.
        recipe: How both views are drawn.
        size_px: S.
        seed: Seed of the draws.

    """

    def __init__(self, reader: ImageReader, recipe: Recipe, *, size_px: int, seed: int) -> None:
        self.reader, self.recipe, self.size_px, self.seed = reader, recipe, size_px, seed

    def __getitems__(self, positions: Sequence[tuple[int, int]]) -> ViewBatch:
        """The views of a whole batch, called by torch's DataLoader in a worker."""
        pixels = np.empty((2, len(positions), self.size_px, self.size_px, 3), np.uint8)
        image_ids, all_bad = np.empty(len(positions), np.int64), list[BadImage]()
        for row, (epoch, index) in enumerate(positions):
            image_ids[row], image, bad = self.reader.read_or_replace(index, epoch)
            all_bad += bad
            for view in (0, 1):  # 0: query, 1: key
                pixels[view, row] = self._view(image, epoch, index, view)
        query, key = torch.from_numpy(pixels).permute(0, 1, 4, 2, 3)  # (n, 3, S, S) in channels_last memory
        return ViewBatch(query=query, key=key, image_ids=torch.from_numpy(image_ids), bad=tuple(all_bad))

    def _view(self, image: Image.Image, epoch: int, index: int, view: int) -> NDArray[np.uint8]:
        rng = generator(self.seed, Purpose.VIEW, epoch, index, view)
        params = draw_params(self.recipe, rng, height=image.height, width=image.width)
        return np.asarray(apply_params(image, params, size_px=self.size_px))


class PlainViews(Dataset[tuple[Tensor, Tensor]]):
    """Images without augmentation, for evaluation; bad images are left out.

    Args:
        reader: Reads the images.
        size_px: S.
        crop_ratio: See `evaluation_crop`.

    """

    def __init__(self, reader: ImageReader, *, size_px: int, crop_ratio: float) -> None:
        self.reader, self.size_px, self.crop_ratio = reader, size_px, crop_ratio

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(pixels (n, 3, S, S) uint8, indices (n,)) of the images that could be read."""
        kept, pixels = list[int](), list[NDArray[np.uint8]]()
        for index in indices:
            try:
                image = self.reader.read(index)
            except DecodeError:
                continue
            kept.append(index)
            pixels.append(np.asarray(evaluation_crop(image, size_px=self.size_px, crop_ratio=self.crop_ratio)))
        rows = np.stack(pixels) if pixels else np.empty((0, self.size_px, self.size_px, 3), np.uint8)
        return torch.from_numpy(rows).permute(0, 3, 1, 2), torch.tensor(kept, dtype=torch.long)
