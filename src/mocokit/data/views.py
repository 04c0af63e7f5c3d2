"""image -> (query view, key view), and small local crops if asked for: independent draws, whole batches at a time.

Shapes: n rows of a batch, S image size; views (n, 3, S, S) uint8; V local crops an image, s their size.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mocokit.data.augment.batched import BatchParams, pack_params
from mocokit.data.augment.recipes import Recipe, ViewParams, draw_params, evaluation_crop
from mocokit.data.batch import BadImage, Each, ViewBatch, empty_pixels
from mocokit.data.decode.decode import DecodeError, decode
from mocokit.data.pipelines import PIPELINES, Draw, fast_views, warm_up
from mocokit.data.sources.sources import ImageSource, RawImage
from mocokit.data.view_size import ViewSize
from mocokit.randomness import Purpose, generator

T = TypeVar("T")

MAX_REPLACEMENTS = 100
"""Draws of a replacement for a bad image before the data set counts as unreadable."""


MadeRow = tuple[int, Sequence[ViewParams], list[BadImage]]
"""The index of the image used, what was drawn for it, and the bad images on the way."""


class ImageReader:
    """Reads images by index and replaces bad ones by others.

    Args:
        source: Where images come from.
        max_image_px: Larger images are bad images.
        seed: Seed of the replacement draws.

    """

    def __init__(self, source: ImageSource, *, max_image_px: int, seed: int) -> None:
        self.source = source
        self.max_image_px = max_image_px
        self.seed = seed

    def read(self, index: int) -> Image.Image:
        """The RGB image; DecodeError when it is bad."""
        try:
            return decode(self.source.read(index), max_image_px=self.max_image_px)
        except OSError as error:  # gone, unreadable, damaged archive member
            raise DecodeError(str(error)) from error

    def use_or_replace(
        self, index: int, epoch: int, use: Callable[[RawImage, int], T]
    ) -> tuple[int, T, list[BadImage]]:
        """`use(image as stored, index)`, or that of another one of the epoch when it raises DecodeError.

        Returns:
            The index of the image used, the result, and what was bad on the way.

        Raises:
            ValueError: MAX_REPLACEMENTS draws in a row were bad.

        """
        bad: list[BadImage] = []
        draws: np.random.Generator | None = None
        for _ in range(MAX_REPLACEMENTS):
            try:
                return index, use(self.source.read(index), index), bad
            except (DecodeError, OSError) as error:  # OSError: gone, unreadable, damaged archive member
                bad.append(BadImage(index=index, name=self.source.name(index), reason=str(error)))
                draws = draws or generator(self.seed, Purpose.REPLACEMENT, epoch, index)
                index = int(draws.integers(len(self.source)))
        raise ValueError(
            f"data: {MAX_REPLACEMENTS} images in a row can't be used, the last being {bad[-1].name} "
            f"({bad[-1].reason}); check the data folder"
        )


@dataclass(frozen=True, kw_only=True)
class LocalCrops:
    """Small crops of an image beside its two views: multi-crop (SwAV, Caron et al. 2020, sec. 3.2)."""

    num_crops: int
    """V, 1 at least."""
    size_px: int
    """s"""
    recipe: Recipe


class TwoViews:
    """Maps (epoch, image index) to two augmented views; the draw depends on nothing but seed, epoch, index and view.

    Args:
        reader: Reads the images.
        recipe: How the query view is drawn.
        key_recipe: How the key view is drawn; None: likewise.
        size_px: S, or how it grows from epoch to epoch.
        seed: Seed of the draws.
        pipeline: "fast" or "reference", see pipelines.py.
        crops_only: Leave color, blur and flip to `ViewBatch.augmented`.
        local: Crops to make beside the two views, which they don't change; None: none.

    """

    def __init__(
        self,
        reader: ImageReader,
        recipe: Recipe,
        *,
        size_px: int | ViewSize,
        seed: int,
        pipeline: str,
        crops_only: bool = False,
        key_recipe: Recipe | None = None,
        local: LocalCrops | None = None,
    ) -> None:
        self.reader = reader
        self.seed = seed
        self.local = local
        self.size = ViewSize(first_px=size_px, last_px=size_px, epochs=0) if isinstance(size_px, int) else size_px
        self.recipes = [recipe, key_recipe or recipe, *([local.recipe] * local.num_crops if local else [])]
        self.pipeline = PIPELINES[pipeline]
        self.crops_only = crops_only
        if self.pipeline is fast_views:
            warm_up()  # before workers are forked, which then have the machine code too

    def make_batch(self, positions: Sequence[tuple[int, int]], each: Each) -> ViewBatch:
        """The views of a whole batch, all of one epoch."""
        pixels = self.empty(len(positions), epoch=positions[0][0])
        ids, draws, bad = zip(*each(self._make_row, positions, *(rows.numpy() for rows in pixels)), strict=True)
        pair, *local = (rows.permute(0, 1, 4, 2, 3) for rows in pixels)  # (n, views, 3, S, S) in channels_last memory
        return ViewBatch(
            query=pair[:, 0],
            key=pair[:, 1],
            image_ids=torch.tensor(ids),
            bad=tuple(itertools.chain(*bad)),
            local=local[0] if local else None,
            params=_pack(draws) if self.crops_only else None,
        )

    def empty(self, num_rows: int, *, epoch: int) -> list[Tensor]:
        """Room for the pixels of a batch: (n, 2, S, S, 3) and, with local crops, (n, V, s, s, 3)."""
        size_px = self.size.in_epoch(epoch)
        pair = empty_pixels(2, num_rows, size_px, size_px, 3).transpose(0, 1)
        if self.local is None:
            return [pair]
        return [pair, empty_pixels(num_rows, self.local.num_crops, self.local.size_px, self.local.size_px, 3)]

    def _make_row(self, position: tuple[int, int], *targets: NDArray[np.uint8]) -> MadeRow:
        """Make the views of the image at `position` in `targets`."""
        epoch, index = position
        return self.reader.use_or_replace(index, epoch, self._maker(epoch, targets))

    def _maker(
        self, epoch: int, targets: Sequence[NDArray[np.uint8]]
    ) -> Callable[[RawImage, int], Sequence[ViewParams]]:
        """Function that makes the views of one image of `epoch` in `targets`."""

        def make(raw: RawImage, index: int) -> Sequence[ViewParams]:
            """Fill `targets` with the views of image `index`; what was drawn."""
            draw = draw_views(self.recipes, self.seed, epoch, index)
            limit = self.reader.max_image_px
            return self.pipeline(raw, draw, *targets, max_image_px=limit, crops_only=self.crops_only)

        return make


def _pack(draws: Sequence[Sequence[ViewParams]]) -> tuple[BatchParams, ...]:
    """Parameters of the query views, of the key views and, if there are any, of the local crops."""
    local = [params for drawn in draws for params in drawn[2:]]
    pair = pack_params([drawn[0] for drawn in draws]), pack_params([drawn[1] for drawn in draws])
    return (*pair, pack_params(local)) if local else pair


def draw_views(recipes: Sequence[Recipe], seed: int, epoch: int, index: int) -> Draw:
    """How the views of image `index` in `epoch` are drawn, view v by `recipes[v]`, whatever other views there are."""

    def draw(height: int, width: int) -> list[ViewParams]:
        """Draw each for an image of that size."""
        streams = (generator(seed, Purpose.VIEW, epoch, index, view) for view in range(len(recipes)))
        return [draw_params(each, rng, height=height, width=width) for each, rng in zip(recipes, streams, strict=True)]

    return draw


class PlainViews:
    """Images without augmentation, for evaluation; bad images are left out.

    Args:
        reader: Reads the images.
        size_px: S.
        crop_ratio: See `evaluation_crop`.

    """

    def __init__(self, reader: ImageReader, *, size_px: int, crop_ratio: float) -> None:
        self.reader = reader
        self.size_px = size_px
        self.crop_ratio = crop_ratio

    def make_batch(self, positions: Sequence[int], each: Each) -> tuple[Tensor, Tensor]:
        """(pixels (n, 3, S, S) uint8, indices (n,)) of the images that could be read."""
        pixels = empty_pixels(len(positions), self.size_px, self.size_px, 3)
        read = torch.tensor(list(each(self._read, positions, pixels.numpy())), dtype=torch.bool)
        return pixels[read].permute(0, 3, 1, 2), torch.tensor(positions, dtype=torch.long)[read]

    def _read(self, index: int, target: NDArray[np.uint8]) -> bool:
        """Whether image `index` could be read, into `target` (S, S, 3)."""
        try:
            image = self.reader.read(index)
        except DecodeError:
            return False
        target[:] = np.asarray(evaluation_crop(image, size_px=self.size_px, crop_ratio=self.crop_ratio))
        return True
