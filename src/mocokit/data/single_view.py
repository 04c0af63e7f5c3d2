"""image -> one randomly cropped and flipped view, for training with labels: linear classifiers and fine-tuning.

Shapes: n rows of a batch, S image size; views (n, 3, S, S) uint8.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mocokit.data.augment import CROP_AND_FLIP, Recipe, ViewParams, draw_params
from mocokit.data.decode import DecodeError
from mocokit.data.pipelines import PIPELINES, Draw
from mocokit.data.views import ImageReader, empty_pixels
from mocokit.randomness import Purpose, generator


class SingleViews(Dataset[tuple[Tensor, Tensor]]):
    """Maps (epoch, image index) to a view; the draw depends on nothing but seed, epoch and index.

    Bad images are left out rather than replaced: a replacement could come from the images held out for testing.

    Args:
        reader: Reads the images.
        size_px: S.
        seed: Seed of the draws.
        recipe: How views are drawn.

    """

    def __init__(self, reader: ImageReader, *, size_px: int, seed: int, recipe: Recipe = CROP_AND_FLIP) -> None:
        self.reader, self.size_px, self.seed, self.recipe = reader, size_px, seed, recipe

    def __getitems__(self, positions: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """(pixels (n, 3, S, S) in channels_last memory, indices (n,)) of the images that could be read."""
        pixels, kept = empty_pixels(len(positions), self.size_px, self.size_px, 3), list[int]()
        for epoch, index in positions:
            target = pixels[len(kept) : len(kept) + 1].numpy()  # (1, S, S, 3)
            try:
                PIPELINES["fast"](
                    self.reader.source.read(index), self._draw(epoch, index), target,
                    max_image_px=self.reader.max_image_px, crops_only=False,
                )  # fmt: skip
            except (DecodeError, OSError):
                continue
            kept.append(index)
        return pixels[: len(kept)].permute(0, 3, 1, 2), torch.tensor(kept, dtype=torch.long)

    def _draw(self, epoch: int, index: int) -> Draw:
        def draw(height: int, width: int) -> list[ViewParams]:
            rng = generator(self.seed, Purpose.VIEW, epoch, index)
            return [draw_params(self.recipe, rng, height=height, width=width)]

        return draw
