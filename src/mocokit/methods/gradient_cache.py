"""Losses that join all images of a batch, at the memory of one micro-batch (Gao et al. 2021, "gradient cache").

The loss of SimCLR or end-to-end training takes a gradient through every embedding of the batch, so the activations of
all images would have to be kept: 4096 images is what MoCo v1 calls intractable. But the loss sees an image only through
its embedding. So:

1. embed all images without keeping activations;
2. take the loss and its gradient g with respect to the embeddings z;
3. embed each micro-batch again and backpropagate sum(z * g), whose gradient is the loss's own.

This costs one more forward pass and is exact, because BatchNorm groups lie within a micro-batch. It does not suit
networks with dropout, which would draw anew in step 3. A rank whose rows are one micro-batch skips step 3.

Shapes: B global batch, n rows of it on this rank, m of a micro-batch, V embeddings an image, C embedding dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mocokit import distributed
from mocokit.methods.contract import Rows, cat_rows
from mocokit.methods.groups import GroupLayout, MicroBatch

Embed = Callable[[MicroBatch, bool], Tensor]
"""(micro-batch, True to update BatchNorm's running statistics) -> (m, V, C) embeddings, with gradient where torch
records one."""

Score = Callable[[Tensor, MicroBatch], tuple[Tensor, Rows]]
"""((B, V, C) embeddings of the whole batch, micro-batch) -> (its images' share of the batch's mean loss, its rows)."""


@dataclass(frozen=True, kw_only=True)
class CachedGradient:
    """The loss of a batch, taken once, with its gradient with respect to this rank's embeddings."""

    embed: Embed
    embeddings: Tensor | None
    """(n, V, C) with their graph, if this rank's rows are one micro-batch; None: they must be embedded again."""
    gradient: Tensor
    """(n, V, C) of the batch's mean loss."""
    rows: Rows
    """(n,) values of each image."""
    global_batch_size: int

    def loss(self, micro: MicroBatch) -> tuple[Tensor, Rows]:
        """Return a scalar whose value is the micro-batch's share of the loss and whose gradient is the loss's own."""
        z = self.embeddings
        if z is None:
            z = self.embed(micro, False)  # statistics were updated the first time
        surrogate = (z * self.gradient[micro.rows]).sum()
        rows = {name: values[micro.rows] for name, values in self.rows.items()}
        share = rows["loss"].sum() / self.global_batch_size
        return surrogate + (share - surrogate).detach(), rows


def cache_gradient(embed: Embed, score: Score, *, layout: GroupLayout, global_batch_size: int) -> CachedGradient:
    """Embed the batch, take its loss and the gradient of that with respect to this rank's embeddings."""
    micro_batches = layout.micro_batches(global_batch_size)
    fits_at_once = len(micro_batches) == 1
    with torch.set_grad_enabled(fits_at_once):
        embeddings = [embed(micro, True) for micro in micro_batches]
    own = torch.cat([part.detach() for part in embeddings])  # (n, V, C)
    batch = distributed.all_gather_rows(own, layout.row_counts(global_batch_size)).clone().requires_grad_()  # (B, V, C)
    parts = []
    with torch.enable_grad(), torch.autocast(own.device.type, enabled=False):
        for micro in micro_batches:
            share, rows = score(batch, micro)
            share.backward()  # at once, so that the scores of one micro-batch at a time are held
            parts.append(rows)
    assert batch.grad is not None, "each rank has rows"
    own_rows = layout.own_rows(global_batch_size)
    return CachedGradient(
        embed=embed,
        embeddings=embeddings[0] if fits_at_once else None,
        # Every rank's losses pull at every embedding, so the gradient is a sum over ranks before it is cut.
        gradient=distributed.sum_over_ranks(batch.grad)[own_rows.start : own_rows.stop],
        rows=cat_rows(parts),
        global_batch_size=global_batch_size,
    )
