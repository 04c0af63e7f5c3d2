"""How a rank runs an encoder over its part of a global batch: BatchNorm groups, micro-batches, shuffling BN.

Shapes: B global batch, n rows of it on this rank.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mocokit import distributed
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.nets.grouped_batchnorm import batchnorm_groups

ShuffleOrder = Callable[[int, int], Tensor]
"""(step, B) -> (B,) permutation in the host's memory: slot i of the shuffled batch holds key view order[i]. The same on
every rank."""


class GroupForward:
    """Forward passes in which each BatchNorm group is normalised on its own.

    Args:
        layout: BatchNorm groups of the global batch, and the part that this rank computes.
        pixels: Module that turns views into what encoders read; runs a micro-batch at a time.

    """

    def __init__(self, layout: GroupLayout, pixels: nn.Module) -> None:
        self.layout = layout
        self.pixels = pixels

    def run(
        self, encoder: nn.Module, views: Tensor, micro: MicroBatch, *, views_per_image: int = 1, moves: bool = True
    ) -> Tensor:
        """Embeddings of a micro-batch.

        Args:
            encoder: Network with grouped BatchNorm.
            views: (micro rows * views_per_image, 3, H, W), or this rank's rows, of which the micro-batch is cut:
                (n, 3, H, W), or (n, V, 3, H, W) of V views each, which give (micro rows * V, C).
            micro: Which groups.
            views_per_image: Above 1, `views` are the micro-batch's own, and as many views share a group.
            moves: Whether BatchNorm's running statistics may follow group 0.

        """
        rows = views[micro.rows] if views_per_image == 1 else views
        moves = moves and micro.has_group_0
        with batchnorm_groups(encoder, micro.num_groups, updates_statistics=moves, ranks=micro.ranks):
            embeddings: Tensor = encoder(self.pixels(rows.flatten(0, -4)))
        return embeddings

    def run_all(self, encoder: nn.Module, views: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, C) embeddings of this rank's rows."""
        return torch.cat([self.run(encoder, views, micro) for micro in self.layout.micro_batches_of(len(views))])

    def gather(self, rows: Tensor) -> Tensor:
        """(n, ...) of this rank -> (B, ...) of the whole batch; no gradient."""
        return distributed.all_gather_rows(rows, self.layout.row_counts(self.layout.batch_size_of(len(rows))))

    def shuffle(self, views: Tensor, order: Tensor | None) -> Tensor:
        """(n, 3, H, W) views of this rank's slots when the batch is put in `order` (B,); None: as they are."""
        if order is None:
            return views
        counts = self.layout.row_counts(self.layout.batch_size_of(len(views)))
        return distributed.permute_rows(views, counts, order)  # uint8: 4.8 MB a rank at B 256, 224 px, 8 ranks


def unshuffle(slots: Tensor, order: Tensor | None) -> Tensor:
    """(B, C) of shuffled slots -> row i is again that of image i; differentiable."""
    return slots if order is None else slots[torch.argsort(order).to(slots.device, non_blocking=True)]


def cat_rows(metrics: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Row metrics of all micro-batches, put together."""
    return {name: torch.cat([rows[name] for rows in metrics]) for name in metrics[0]}


def require_temperature(temperature: float) -> None:
    """Raise ValueError when no softmax can have it."""
    if temperature <= 0:
        raise ValueError(f"method.temperature={temperature}: must be above 0; the papers use 0.07 to 1.0")
