"""Run an encoder over this rank's part of a global batch: BatchNorm groups, micro-batches, shuffling BN.

Shapes: B global batch, n rows of it on this rank, m rows of a micro-batch, C embedding dimension.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mocokit import distributed
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.nets.grouped_batchnorm import batchnorm_groups
from mocokit.randomness import Purpose, permutation

ShuffleOrder = Callable[[int, int], Tensor]
"""(step, B) -> (B,) permutation in host memory, the same on every rank: slot i of the shuffled batch holds key view
order[i]."""


class GroupForward:
    """Forward passes in which each BatchNorm group is normalised on its own.

    Args:
        layout: BatchNorm groups of the global batch, and the part of them that this rank computes.
        pixels: Module that turns uint8 views into what encoders read. It runs a micro-batch at a time, because floats
            take four times the memory of uint8: a batch of 256 at 224 px is 39 MB as bytes, 154 MB as floats.

    """

    def __init__(self, layout: GroupLayout, pixels: nn.Module) -> None:
        self.layout = layout
        self.pixels = pixels

    def embed(self, encoder: nn.Module, views: Tensor, micro: MicroBatch, *, update_bn_stats: bool = True) -> Tensor:
        """Return the embeddings of a micro-batch's views: (k, 3, H, W) -> (k, C).

        Args:
            encoder: Network with grouped BatchNorm.
            views: The micro-batch's own views, group after group; k is a multiple of its number of groups.
            micro: The micro-batch.
            update_bn_stats: False: BatchNorm's running statistics stay. If True, group 0 alone updates them: the
                official code saves those of rank 0.

        """
        update_bn_stats = update_bn_stats and micro.has_group_0
        with batchnorm_groups(encoder, micro.num_groups, updates_statistics=update_bn_stats, ranks=micro.ranks):
            embeddings: Tensor = encoder(self.pixels(views))
        return embeddings

    def embed_all(self, encoder: nn.Module, views: Tensor) -> Tensor:
        """Return the embeddings of all rows of this rank: (n, 3, H, W) -> (n, C)."""
        micro_batches = self.layout.micro_batches_of(len(views))
        return torch.cat([self.embed(encoder, views[micro.rows], micro) for micro in micro_batches])

    def embed_keys(self, encoder: nn.Module, views: Tensor, order: Tensor | None) -> Tensor:
        """Return the keys of the whole batch: (n, 3, H, W) -> (B, C), row i belongs to image i; no gradient.

        With an `order`, views are shuffled over the batch before they are embedded and the keys put back afterwards
        (shuffling BN): a key is then normalised beside other images than its query.
        """
        slots = self.embed_all(encoder, self.shuffle(views, order))  # (n, C)
        return unshuffle(self.gather(slots), order)  # (B, C)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks: (n, ...) -> (B, ...); no gradient."""
        return distributed.all_gather_rows(rows, self.layout.row_counts(self.layout.batch_size_of(len(rows))))

    def shuffle(self, views: Tensor, order: Tensor | None) -> Tensor:
        """Return this rank's slots of the batch in `order` (B,): (n, 3, H, W) -> (n, 3, H, W); as they are for None."""
        if order is None:
            return views
        counts = self.layout.row_counts(self.layout.batch_size_of(len(views)))
        return distributed.permute_rows(views, counts, order)  # uint8: 4.8 MB a rank at B 256, 224 px, 8 ranks


def unshuffle(slots: Tensor, order: Tensor | None) -> Tensor:
    """Put shuffled slots back in batch order: (B, C) -> (B, C), row i belongs to image i; differentiable."""
    return slots if order is None else slots[torch.argsort(order).to(slots.device, non_blocking=True)]


def seeded_shuffle(seed: int) -> ShuffleOrder:
    """Return the permutation of shuffling BN for each step of a run with that seed."""
    return lambda step, size: torch.from_numpy(permutation(seed, Purpose.KEY_SHUFFLE, size, step))
