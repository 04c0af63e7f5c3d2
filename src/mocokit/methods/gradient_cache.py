"""Losses that join all images of a batch, at the memory of one micro-batch (Gao et al. 2021, "gradient cache").

The loss of SimCLR or end-to-end training takes a gradient through every embedding of the batch, so activations of all
images would have to be kept: 4096 images is what MoCo v1 calls intractable. But the loss sees an image only through
its embedding. So: embed all images without keeping activations; take the loss and its gradient g with respect to the
embeddings z; embed each micro-batch again, and backpropagate sum(z * g), whose gradient is the loss's own. It costs
one forward pass more and is exact, since BatchNorm groups lie within a micro-batch. Not for networks with dropout,
which would draw anew.

Shapes: B global batch, n rows of it on this rank, V embeddings an image, C embedding dimension.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mocokit import distributed
from mocokit.methods.groups import GroupLayout, MicroBatch

Embed = Callable[[MicroBatch, bool], Tensor]
"""(micro-batch, whether BatchNorm's running statistics move) -> (rows, V, C) embeddings, with gradient."""

Score = Callable[[Tensor, MicroBatch], Tensor]
"""((B, V, C) embeddings of the whole batch, micro-batch) -> its images' share of the batch's mean loss, a scalar."""


def cached_micro_losses(embed: Embed, score: Score, *, layout: GroupLayout, global_batch_size: int) -> Iterator[Tensor]:
    """One scalar a micro-batch: its share of the loss, with the gradient of the whole loss through its embeddings.

    A rank whose rows are a single micro-batch embeds them once, with gradient.
    """
    micro_batches = layout.micro_batches(global_batch_size)
    is_whole = len(micro_batches) == 1
    with torch.set_grad_enabled(is_whole):
        embeddings = [embed(micro, True) for micro in micro_batches]
    own = torch.cat([rows.detach() for rows in embeddings])  # (n, V, C)
    shares, gradient = _loss_and_gradient(own, score, layout, global_batch_size)
    for number, micro in enumerate(micro_batches):
        rows = embeddings[0] if is_whole else embed(micro, False)  # statistics moved once already
        surrogate = (rows * gradient[micro.rows]).sum()
        yield surrogate + (shares[number] - surrogate).detach()


def _loss_and_gradient(
    own: Tensor, score: Score, layout: GroupLayout, global_batch_size: int
) -> tuple[list[Tensor], Tensor]:
    """Each micro-batch's share of the loss, and d (mean loss of the batch) / d `own`, (n, V, C)."""
    batch = distributed.all_gather_rows(own, layout.row_counts(global_batch_size)).clone().requires_grad_()
    shares = list[Tensor]()
    with torch.enable_grad(), torch.autocast(own.device.type, enabled=False):
        for micro in layout.micro_batches(global_batch_size):
            share = score(batch, micro)
            share.backward()  # scores of one micro-batch at a time are held
            shares.append(share.detach())
    assert batch.grad is not None, "each rank has rows"
    rows = layout.own_rows(global_batch_size)
    return shares, distributed.sum_over_ranks(batch.grad)[rows.start : rows.stop]
