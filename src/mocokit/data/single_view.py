"""Make one randomly cropped and flipped view per image, for linear classifiers and fine-tuning.

Shapes: n rows of a batch, S image size; views are (n, 3, S, S) uint8.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mocokit.data.augment.recipes import CROP_AND_FLIP, Recipe, ViewParams, draw_params
from mocokit.data.batch import BadImage, Each, empty_pixels
from mocokit.data.decode.decode import DecodeError
from mocokit.data.pipelines import Draw, fast_views, warm_up
from mocokit.data.views import ImageReader, PlainBatch, keep_readable
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

    def make_batch(self, positions: Sequence[tuple[int, int]], each: Each) -> PlainBatch:
        """Return the views of the images that could be read, in channels_last memory."""
        pixels = empty_pixels(len(positions), 1, self.size_px, self.size_px, 3)
        bad = list(each(self._make_row, positions, pixels.numpy()))
        return keep_readable(pixels[:, 0], [index for _, index in positions], bad)

    def _make_row(self, position: tuple[int, int], target: NDArray[np.uint8]) -> BadImage | None:
        """Write the view of the image at `position` to `target` (1, S, S, 3); return why it is bad, or None."""
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
        except (DecodeError, OSError) as error:
            return BadImage(index=index, name=self.reader.source.name(index), reason=str(error))
        return None

    def _draw(self, epoch: int, index: int) -> Draw:
        def draw(height: int, width: int) -> list[ViewParams]:
            rng = generator(self.seed, Purpose.VIEW, epoch, index)
            return [draw_params(self.recipe, rng, height=height, width=width)]

        return draw
