"""InfoNCE, the loss of every method here: pure functions of tensors; no module, no state, no rank.

It is CPC's (van den Oord et al. 2018, eq. 4): pick the positive among 1 + K candidates by a softmax over similarity
divided by T. The methods differ in where candidates come from, not in the objective (MoCo v1 sec. 3.2 and fig. 2):

* `info_nce`: K candidates that take no gradient, a queue or a memory bank (MoCo v1 eq. 1);
* `in_batch_info_nce`: the other keys of the batch, so K = B - 1 (end-to-end; MoCo v3 without its factor 2T);
* `nt_xent`: the other views of the batch, so K = 2B - 2 (SimCLR eq. 1), which is `in_batch_info_nce` twice.

log(K + 1) - loss bounds the mutual information of query and key from below, in nats (CPC eq. 5): `mi_bound`.

Shapes: N queries of this call, C feature dimension, K negatives, c of them at a time, B global batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}
"""Scores held at once, N * c, whatever K is: 4 MB, near the caches; 64 MB, so that kernels outlast their launches."""


class InfoNce(NamedTuple):
    """What one contrast gives for each query; only the first carries a gradient."""

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
    num_kept: Tensor
    """(N,) negatives that count: K, less those masked."""

    @property
    def mi_bound(self) -> Tensor:
        """(N,) log(K + 1) - loss, in nats: its mean bounds I(query; key) from below (CPC eq. 5)."""
        return (self.num_kept + 1).log() - self.row_losses.detach()


def row_metrics(directions: Sequence[InfoNce], losses: Tensor) -> dict[str, Tensor]:
    """What a run is judged by, one value a row; no gradient.

    Args:
        directions: One contrast, or the two of a symmetric loss, whose mean is taken.
        losses: (N,) what is minimised.

    """
    values: dict[str, list[Tensor]] = {
        "contrast_acc": [nce.correct.to(nce.row_losses.dtype) for nce in directions],
        "positive_similarity": [nce.positive_similarity for nce in directions],
        "negative_similarity": [nce.negative_similarity for nce in directions],
        "mi_bound": [nce.mi_bound for nce in directions],
    }
    means = {name: torch.stack(rows).mean(dim=0) for name, rows in values.items()}
    return {"loss": losses.detach(), **means}


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


def in_batch_info_nce(
    q: Tensor, keys: Tensor, positives: Tensor, *, temperature: float, excluded: Tensor | None = None
) -> InfoNce:
    """InfoNCE whose negatives are the other keys of the batch; a gradient flows into queries and keys.

    Args:
        q: (N, C) unit rows.
        keys: (M, C) unit rows: positives and negatives of all queries.
        positives: (N,) index of each query's positive in `keys`.
        temperature: Softmax temperature T > 0.
        excluded: (N,) index of the one key that is no candidate, in SimCLR the query itself.

    """
    similarity = q @ keys.T  # (N, M)
    if excluded is not None:
        similarity = similarity.scatter(1, excluded[:, None], -torch.inf)
    row_losses = F.cross_entropy(similarity / temperature, positives, reduction="none")
    known = similarity.detach()
    positive = known.gather(1, positives[:, None])[:, 0]  # (N,)
    others = known.scatter(1, positives[:, None], -torch.inf)  # (N, M)
    num_kept = others.isfinite().sum(dim=1).to(row_losses.dtype)
    return InfoNce(
        row_losses=row_losses,
        correct=positive > others.amax(dim=1),
        positive_similarity=positive,
        negative_similarity=others.masked_fill(others.isinf(), 0.0).sum(dim=1) / num_kept.clamp(min=1),
        num_masked=torch.zeros_like(num_kept),
        num_kept=num_kept,
    )


def nt_xent(
    queries: Tensor, keys: Tensor, *, temperature: float, rows: slice = slice(None),
    instead: Tensor | None = None,
) -> tuple[InfoNce, InfoNce]:  # fmt: skip
    """SimCLR's NT-Xent (eq. 1): each view against its other view and the 2B - 2 views of the other images.

    The official loss adds the means over both directions, which is twice the mean over all 2B views.

    Args:
        queries: (B, C) unit rows, first views.
        keys: (B, C) unit rows, second views of the same images.
        temperature: Softmax temperature T > 0.
        rows: Images that are contrasted in this call; all are candidates.
        instead: (N, C) other views of `rows`, contrasted in the place of both of theirs; None: no others.

    Returns:
        The contrasts of those images' queries, and of their keys.

    """
    own = torch.arange(len(queries), device=queries.device)[rows]  # (N,)
    lead, follow = (queries[rows], keys[rows]) if instead is None else (instead, instead)
    first = in_batch_info_nce(lead, torch.cat([keys, queries]), own, temperature=temperature, excluded=own + len(keys))
    second = in_batch_info_nce(
        follow, torch.cat([queries, keys]), own, temperature=temperature, excluded=own + len(keys)
    )
    return first, second


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
        """The fields of InfoNce; the first keeps its slope for `backward`."""
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
        num_kept = len(negatives) - num_masked
        mean_negative = sum_negative / num_kept.clamp(min=1)
        metrics = (similarity > highest_negative, similarity, mean_negative, num_masked, num_kept)
        ctx.mark_non_differentiable(*metrics)
        return row_losses, *metrics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The slope of each row times the gradient of its loss."""
        (slope,) = ctx.saved_tensors
        return grads[0][:, None] * slope, None, None, None, None, None
