"""Size of the views in each epoch: views may start small and grow.

A step on views of half the side costs about a quarter. A network with global pooling reads any size, so the early
epochs, which learn coarse structure, can be cheap (Howard 2018; EfficientNetV2, Tan and Le 2021, sec. 4, "progressive
learning").
"""

from dataclasses import dataclass

STEP_PX = 8
"""Sizes between the first and the last are multiples of this."""


@dataclass(frozen=True, kw_only=True)
class ViewSize:
    """Side of the views, growing evenly from `first_px` in epoch 0 to `last_px` in epoch `epochs` and after."""

    first_px: int
    last_px: int
    epochs: int

    def in_epoch(self, epoch: int) -> int:
        """Return the side of a view in pixels."""
        if epoch >= self.epochs:
            return self.last_px
        grown = self.first_px + (self.last_px - self.first_px) * epoch / self.epochs
        return max(self.first_px, int(grown // STEP_PX) * STEP_PX)
