"""Make one randomly cropped and flipped view per image, for linear classifiers and fine-tuning.

Shapes: n rows of a batch, S image size; views are (n, 3, S, S) uint8.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mocokit.data.augment.recipes import CROP_AND_FLIP, Recipe, ViewParams, draw_params
from mocokit.data.batch import Each, empty_pixels
from mocokit.data.decode.decode import DecodeError
from mocokit.data.pipelines import Draw, fast_views, warm_up
from mocokit.data.views import ImageReader
from mocokit.randomness import Purpose, generator


class SingleViews:
    """Batches of one view per image, each drawn from (seed, epoch, image index) alone.

    Bad images are left out, not replaced: a replacement could be one of the images held out for testing.

    Args:
        reader: Reads the images.
        size_px: S.
        seed: Seed of the draws.
        recipe: Distribution of the augmentation.

    """

    def __init__(self, reader: ImageReader, *, size_px: int, seed: int, recipe: Recipe = CROP_AND_FLIP) -> None:
        self.reader = reader
        self.size_px = size_px
        self.seed = seed
        self.recipe = recipe
        warm_up()  # before workers are forked: they inherit the compiled code

    def make_batch(self, positions: Sequence[tuple[int, int]], each: Each) -> tuple[Tensor, Tensor]:
        """Return (pixels (n, 3, S, S) in channels_last memory, indices (n,)) of the images that could be read."""
        pixels = empty_pixels(len(positions), 1, self.size_px, self.size_px, 3)
        made = torch.tensor(list(each(self._make_row, positions, pixels.numpy())), dtype=torch.bool)
        indices = torch.tensor([index for _, index in positions])
        return pixels[made, 0].permute(0, 3, 1, 2), indices[made]

    def _make_row(self, position: tuple[int, int], target: NDArray[np.uint8]) -> bool:
        """Write the view of the image at `position` to `target` (1, S, S, 3); return False if the image is bad."""
        epoch, index = position
        try:
            fast_views(
                self.reader.source.read(index),
                self._draw(epoch, index),
                target,
                max_image_px=self.reader.max_image_px,
                ranges=self.reader.ranges,
                crops_only=False,
            )
        except (DecodeError, OSError):
            return False
        return True

    def _draw(self, epoch: int, index: int) -> Draw:
        def draw(height: int, width: int) -> list[ViewParams]:
            rng = generator(self.seed, Purpose.VIEW, epoch, index)
            return [draw_params(self.recipe, rng, height=height, width=width)]

        return draw
