"""InfoNCE: pure functions of tensors; no module, no state, no rank.

Shapes: N queries of this call, C feature dimension, K negatives, c of them at a time.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}
"""Scores held at once, N * c, whatever K is: 4 MB, near the caches; 64 MB, so that kernels outlast their launches."""


class InfoNce(NamedTuple):
    """Result of `info_nce`; only the first carries a gradient."""

    row_losses: Tensor
    """(N,) cross entropy of picking the positive among 1 + K candidates."""
    correct: Tensor
    """(N,) whether the positive scored above every negative; a tie is a miss. Its mean is the (K+1)-way accuracy."""
    positive_similarity: Tensor
    """(N,) q . k+, before the temperature."""
    negative_similarity: Tensor
    """(N,) mean q . k- over the negatives that count, before the temperature."""
    num_masked: Tensor
    """(N,) negatives that do not count."""


def info_nce(
    q: Tensor,
    k: Tensor,
    negatives: Tensor,
    *,
    temperature: float,
    ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
) -> InfoNce:
    """InfoNCE with one positive and K negatives a query (MoCo v1 eq. 1; CPC eq. 4).

    The (N, K) scores are never held: they are summed up a chunk of negatives at a time, and the gradient along with
    them (as attention kernels do: Milakov and Gimelshein 2018; Dao et al. 2022), so extra memory does not grow with K
    and a backward pass costs nothing more.

    Args:
        q: (N, C) unit rows.
        k: (N, C) unit rows, the positive of each query; no gradient flows into it.
        negatives: (K, C) unit rows; no gradient flows into them.
        temperature: Softmax temperature T > 0.
        ids: (N,) image of each query; with `negative_ids`, negatives of a query's own image do not count.
        negative_ids: (K,) image of each negative.

    """
    if (ids is None) != (negative_ids is None):
        raise ValueError("ids: masking own-image negatives needs both ids and negative_ids")
    return InfoNce(*_InfoNceFunction.apply(q, k.detach(), negatives.detach(), temperature, ids, negative_ids))


class _InfoNceFunction(torch.autograd.Function):
    """Sums exp(score - highest) and its derivative over chunks, rescaling both whenever a higher score turns up."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        negatives: Tensor,
        temperature: float,
        ids: Tensor | None,
        negative_ids: Tensor | None,
    ) -> tuple[Tensor, ...]:
        similarity = (q * k).sum(dim=1)  # (N,)
        positive = similarity / temperature
        highest, total = positive.clone(), torch.ones_like(positive)  # (N,) each
        pull = k.clone()  # (N, C) sum of candidates weighted by exp(score - highest)
        highest_negative = torch.full_like(positive, -torch.inf)
        sum_negative, num_masked = torch.zeros_like(positive), torch.zeros_like(positive)
        step = max(1, CHUNK_ELEMENTS.get(q.device.type, 2**20) // len(q))
        for start in range(0, len(negatives), step):
            part = slice(start, start + step)
            chunk = negatives[part]  # (c, C)
            scores = q @ chunk.T  # (N, c)
            if ids is not None and negative_ids is not None:
                masked = ids[:, None] == negative_ids[None, part]  # (N, c)
                num_masked += masked.sum(dim=1)
                sum_negative += scores.masked_fill(masked, 0.0).sum(dim=1)
                scores = scores.masked_fill_(masked, -torch.inf)
            else:
                sum_negative += scores.sum(dim=1)
            top = scores.amax(dim=1)
            highest_negative = torch.maximum(highest_negative, top)
            higher = torch.maximum(highest, top / temperature)
            shrink = (highest - higher).exp()  # (N,)
            weights = scores.div_(temperature).sub_(higher[:, None]).exp_()  # (N, c)
            total = total * shrink + weights.sum(dim=1)
            pull = torch.addmm(pull * shrink[:, None], weights, chunk)
            highest = higher
        row_losses = highest + total.log() - positive
        ctx.save_for_backward((pull / total[:, None] - k) / temperature)  # (N, C) d row_loss / dq
        num_kept = (len(negatives) - num_masked).clamp(min=1)
        metrics = (similarity > highest_negative, similarity, sum_negative / num_kept, num_masked)
        ctx.mark_non_differentiable(*metrics)
        return row_losses, *metrics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return grads[0][:, None] * slope, None, None, None, None, None
