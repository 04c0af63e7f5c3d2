"""Make the query view, the key view and optional local crops of each image, a batch at a time.

Each view is drawn independently of the others.

Shapes: n rows of a batch, S image size, V local crops per image, s their size; views are (n, 3, S, S) uint8.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mocokit.data.augment.batched import BatchParams, pack_params
from mocokit.data.augment.recipes import Recipe, ViewParams, draw_params, evaluation_crop
from mocokit.data.batch import BadImage, Each, ViewBatch, empty_pixels
from mocokit.data.decode.decode import DecodeError, decode
from mocokit.data.decode.deep import NO_RANGES, ValueRanges
from mocokit.data.pipelines import PIPELINES, Draw, fast_views, warm_up
from mocokit.data.sources.sources import ImageSource, RawImage
from mocokit.data.view_size import ViewSize
from mocokit.randomness import Purpose, generator

T = TypeVar("T")

MAX_REPLACEMENTS = 100
"""Bad images in a row after which the data set counts as unreadable."""

MadeRow = tuple[int, Sequence[ViewParams], list[BadImage]]
"""(index of the image used, its drawn parameters, bad images that it replaces)"""


class ImageReader:
    """Reader of images by index that can replace bad images by others.

    Args:
        source: The stored images.
        max_image_px: Largest number of pixels; a larger image is a bad image.
        seed: Seed of the random choice of replacements.
        ranges: Value range of each sample type of more than 8 bits, see value_range.py.

    """

    def __init__(self, source: ImageSource, *, max_image_px: int, seed: int, ranges: ValueRanges = NO_RANGES) -> None:
        self.source = source
        self.max_image_px = max_image_px
        self.seed = seed
        self.ranges = ranges

    def read(self, index: int) -> Image.Image:
        """Return the RGB image; raise DecodeError if it is bad."""
        try:
            return decode(self.source.read(index), max_image_px=self.max_image_px, ranges=self.ranges)
        except OSError as error:  # a missing or unreadable file, or a damaged archive member
            raise DecodeError(str(error)) from error

    def use_or_replace(
        self, index: int, epoch: int, use: Callable[[RawImage, int], T]
    ) -> tuple[int, T, list[BadImage]]:
        """Call `use(stored image, index)`; if the image is bad, try again with a randomly chosen one.

        Returns:
            The index of the image used, the result of `use`, and the bad images that were tried.

        Raises:
            ValueError: MAX_REPLACEMENTS images in a row were bad.

        """
        bad: list[BadImage] = []
        draws: np.random.Generator | None = None
        for _ in range(MAX_REPLACEMENTS):
            try:
                return index, use(self.source.read(index), index), bad
            except (DecodeError, OSError) as error:  # OSError: a missing or unreadable file, or a damaged member
                bad.append(BadImage(index=index, name=self.source.name(index), reason=str(error)))
                draws = draws or generator(self.seed, Purpose.REPLACEMENT, epoch, index)
                index = int(draws.integers(len(self.source)))
        raise ValueError(
            f"data: {MAX_REPLACEMENTS} images in a row can't be used, the last being {bad[-1].name} "
            f"({bad[-1].reason}); check the data folder"
        )


@dataclass(frozen=True, kw_only=True)
class LocalCrops:
    """Settings of multi-crop: small crops of an image beside its two views (SwAV, Caron et al. 2020, sec. 3.2)."""

    num_crops: int
    """Crops per image (V), at least 1."""
    size_px: int
    """Side of a crop (s)."""
    recipe: Recipe


class TwoViews:
    """Batches of two augmented views per image, each drawn from (seed, epoch, image index, view number) alone.

    Args:
        reader: Reads the images.
        recipe: Distribution of the query view's augmentation.
        key_recipe: Distribution of the key view's augmentation; None: the same as the query view's.
        size_px: Side of the views (S), fixed or growing with the epochs.
        seed: Seed of the draws.
        pipeline: "fast" or "reference", see pipelines.py.
        crops_only: Crop and resize only; leave color, blur and flip to `ViewBatch.augmented`.
        local: Local crops to make as well; they do not change the two views. None: no local crops.

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
            warm_up()  # before workers are forked: they inherit the compiled code

    def make_batch(self, positions: Sequence[tuple[int, int]], each: Each) -> ViewBatch:
        """Return the views of a batch of (epoch, image index) positions, all of one epoch."""
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
        """Return uninitialised arrays for a batch: views (n, 2, S, S, 3) and, with local crops, (n, V, s, s, 3)."""
        size_px = self.size.in_epoch(epoch)
        pair = empty_pixels(2, num_rows, size_px, size_px, 3).transpose(0, 1)
        if self.local is None:
            return [pair]
        return [pair, empty_pixels(num_rows, self.local.num_crops, self.local.size_px, self.local.size_px, 3)]

    def _make_row(self, position: tuple[int, int], *targets: NDArray[np.uint8]) -> MadeRow:
        """Write the views of the image at `position`, or of a replacement, to `targets`."""
        epoch, index = position

        def make(raw: RawImage, index: int) -> Sequence[ViewParams]:
            """Write the views of one image; `index` may be that of a replacement."""
            draw = draw_views(self.recipes, self.seed, epoch, index)
            return self.pipeline(
                raw,
                draw,
                *targets,
                max_image_px=self.reader.max_image_px,
                ranges=self.reader.ranges,
                crops_only=self.crops_only,
            )

        return self.reader.use_or_replace(index, epoch, make)


def _pack(draws: Sequence[Sequence[ViewParams]]) -> tuple[BatchParams, ...]:
    """Return the packed parameters of the query views, the key views and, if there are any, the local crops."""
    local = [params for drawn in draws for params in drawn[2:]]
    pair = pack_params([drawn[0] for drawn in draws]), pack_params([drawn[1] for drawn in draws])
    return (*pair, pack_params(local)) if local else pair


def draw_views(recipes: Sequence[Recipe], seed: int, epoch: int, index: int) -> Draw:
    """Return a function that draws the views of image `index` in `epoch`: view v by `recipes[v]`.

    A view's draw does not depend on the number of views.
    """

    def draw(height: int, width: int) -> list[ViewParams]:
        streams = (generator(seed, Purpose.VIEW, epoch, index, view) for view in range(len(recipes)))
        return [draw_params(each, rng, height=height, width=width) for each, rng in zip(recipes, streams, strict=True)]

    return draw


class PlainBatch(NamedTuple):
    """Images of a batch that could be read, and those that could not."""

    pixels: Tensor
    """(n, 3, S, S) uint8"""
    indices: Tensor
    """(n,) position of each image in the source"""
    bad: tuple[BadImage, ...]


class PlainViews:
    """Batches of images without augmentation, for evaluation; bad images are left out.

    Args:
        reader: Reads the images.
        size_px: Side of the images (S).
        crop_ratio: See `evaluation_crop`.

    """

    def __init__(self, reader: ImageReader, *, size_px: int, crop_ratio: float) -> None:
        self.reader = reader
        self.size_px = size_px
        self.crop_ratio = crop_ratio

    def make_batch(self, positions: Sequence[int], each: Each) -> PlainBatch:
        """Return the images at `positions` that could be read."""
        pixels = empty_pixels(len(positions), self.size_px, self.size_px, 3)
        bad = list(each(self._read, positions, pixels.numpy()))
        return keep_readable(pixels, positions, bad)

    def _read(self, index: int, target: NDArray[np.uint8]) -> BadImage | None:
        """Read image `index` into `target` (S, S, 3); return why it is bad, or None."""
        try:
            image = self.reader.read(index)
        except DecodeError as error:
            return BadImage(index=index, name=self.reader.source.name(index), reason=str(error))
        target[:] = np.asarray(evaluation_crop(image, size_px=self.size_px, crop_ratio=self.crop_ratio))
        return None


def keep_readable(pixels: Tensor, indices: Sequence[int], bad: Sequence[BadImage | None]) -> PlainBatch:
    """Return the batch without the bad images.

    Args:
        pixels: (n, S, S, 3) uint8
        indices: Position of each image in the source.
        bad: For each image, why it is bad, or None.

    """
    read = torch.tensor([image is None for image in bad], dtype=torch.bool)
    return PlainBatch(
        pixels=pixels[read].permute(0, 3, 1, 2),
        indices=torch.tensor(indices, dtype=torch.long)[read],
        bad=tuple(image for image in bad if image is not None),
    )
