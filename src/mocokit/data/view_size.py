"""Small images first: the side of a view, epoch by epoch.

A step on views of half the side costs about a quarter. A network that pools over space reads any size, so early epochs,
which find coarse structure, can be cheap (Howard 2018 and EfficientNetV2, Tan and Le 2021, sec. 4: "progressive").
"""

from dataclasses import dataclass

STEP_PX = 8
"""Sizes on the way are multiples of it."""


@dataclass(frozen=True, kw_only=True)
class ViewSize:
    """Grows evenly from `first_px` to `last_px`, which the epoch `epochs` is the first to have."""

    first_px: int
    last_px: int
    epochs: int

    def in_epoch(self, epoch: int) -> int:
        """Side of a view (pixels)."""
        if epoch >= self.epochs:
            return self.last_px
        grown = self.first_px + (self.last_px - self.first_px) * epoch / self.epochs
        return max(self.first_px, int(grown // STEP_PX) * STEP_PX)
