"""InfoNCE, the loss of every method here: pure functions of tensors; no module, no state, no rank.

It is CPC's (van den Oord et al. 2018, eq. 4): pick the positive among 1 + K candidates by a softmax over similarity
divided by T. The methods differ in where candidates come from, not in the objective (MoCo v1 sec. 3.2 and fig. 2):

* `info_nce`: K candidates that take no gradient, a queue or a memory bank (MoCo v1 eq. 1);
* `in_batch_info_nce`: the other keys of the batch, so K = B - 1 (end-to-end; MoCo v3 without its factor 2T);
* `nt_xent`: the other views of the batch, so K = 2B - 2 (SimCLR eq. 1), which is `in_batch_info_nce` twice.

log(K + 1) - loss bounds the mutual information of query and key from below, in nats (CPC eq. 5): `mi_bound`.

`NegativeTerm` changes how negatives enter the denominator: decoupled, or the harder the more.

Shapes: N queries of this call, C feature dimension, K negatives, c of them at a time, B global batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}
"""Scores held at once, N * c, whatever K is: 4 MB, near the caches; 64 MB, so that kernels outlast their launches."""


@dataclass(frozen=True, kw_only=True)
class NegativeTerm:
    """How negatives enter the denominator; as it is, each counts once beside the positive (CPC, MoCo, SimCLR)."""

    decoupled: bool = False
    """Leave the positive out of the denominator (Yeh et al. 2021, DCL, arXiv:2110.06848 eq. 6): its gradient then no
    longer fades for queries that tell their positive already."""
    hardness: float = 0.0
    """beta: a negative counts in proportion to exp(beta * q . k- / T), on average once (Robinson et al. 2021,
    arXiv:2010.04592 eq. 4 with tau+ = 0)."""

    def __post_init__(self) -> None:
        if self.hardness < 0:
            raise ValueError(f"method.hardness={self.hardness}: must be 0 (all negatives alike) or more")

    @property
    def is_plain(self) -> bool:
        """Whether the loss is InfoNCE itself."""
        return self == PLAIN

    def chance_loss(self, num_negatives: int) -> float:
        """The loss while all similarities are the same."""
        return math.log(num_negatives + (0 if self.decoupled else 1))

    def row_losses(self, positive: Tensor, log_negative: Tensor) -> Tensor:
        """(N,) losses of positive scores and logarithms of the sums over negatives, (N,) each."""
        margin = log_negative - positive
        return margin if self.decoupled else torch.logaddexp(margin, torch.zeros_like(margin))


PLAIN = NegativeTerm()


class InfoNce(NamedTuple):
    """What one contrast gives for each query; only the first carries a gradient."""

    row_losses: Tensor
    """(N,) cross entropy of picking the positive among 1 + K candidates, or what a `NegativeTerm` makes of it."""
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

    def per_image(self, queries: int) -> "InfoNce":
        """Means over each image's `queries` consecutive rows."""
        if queries == 1:
            return self
        floats = (field.to(self.row_losses.dtype).unflatten(0, (-1, queries)).mean(dim=1) for field in self)
        return InfoNce(*floats)

    @property
    def mi_bound(self) -> Tensor:
        """(N,) log(K + 1) - loss, in nats: its mean bounds I(query; key) from below (CPC eq. 5); of the plain loss."""
        return (self.num_kept + 1).log() - self.row_losses.detach()


def row_metrics(directions: Sequence[InfoNce], losses: Tensor, *, term: NegativeTerm = PLAIN) -> dict[str, Tensor]:
    """What a run is judged by, one value a row; no gradient.

    Args:
        directions: One contrast, or the two of a symmetric loss, whose means are taken.
        losses: (N,) what the run minimises.
        term: What the losses were taken with; only the plain one bounds the mutual information.

    """
    values: dict[str, list[Tensor]] = {
        "contrast_acc": [nce.correct.to(nce.row_losses.dtype) for nce in directions],
        "positive_similarity": [nce.positive_similarity for nce in directions],
        "negative_similarity": [nce.negative_similarity for nce in directions],
    }
    if term.is_plain:
        values["mi_bound"] = [nce.mi_bound for nce in directions]
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
    term: NegativeTerm = PLAIN,
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
        term: How negatives enter the denominator.

    """
    if (ids is None) != (negative_ids is None):
        raise ValueError("ids: masking own-image negatives needs both ids and negative_ids")
    return InfoNce(*_InfoNceFunction.apply(q, k.detach(), negatives.detach(), temperature, term, ids, negative_ids))


def in_batch_info_nce(
    q: Tensor,
    keys: Tensor,
    positives: Tensor,
    *,
    temperature: float,
    excluded: Tensor | None = None,
    term: NegativeTerm = PLAIN,
) -> InfoNce:
    """InfoNCE whose negatives are the other keys of the batch; a gradient flows into queries and keys.

    Args:
        q: (N, C) unit rows.
        keys: (M, C) unit rows: positives and negatives of all queries.
        positives: (N,) index of each query's positive in `keys`.
        temperature: Softmax temperature T > 0.
        excluded: (N,) index of the one key that is no candidate, in SimCLR the query itself.
        term: How negatives enter the denominator.

    """
    similarity = q @ keys.T  # (N, M)
    positive = similarity.gather(1, positives[:, None])[:, 0]  # (N,)
    left_out = positives[:, None] if excluded is None else torch.stack([positives, excluded], dim=1)
    negatives = similarity.scatter(1, left_out, -torch.inf)  # (N, M)
    num_kept = torch.full_like(positive, keys.shape[0] - left_out.shape[1])  # (N,)
    log_negative = (negatives * ((1 + term.hardness) / temperature)).logsumexp(dim=1)
    if term.hardness:
        log_negative = log_negative + num_kept.log() - (negatives * (term.hardness / temperature)).logsumexp(dim=1)
    row_losses = term.row_losses(positive / temperature, log_negative)
    others = negatives.detach()
    return InfoNce(
        row_losses=row_losses,
        correct=positive.detach() > others.amax(dim=1),
        positive_similarity=positive.detach(),
        negative_similarity=others.masked_fill(others.isinf(), 0.0).sum(dim=1) / num_kept.clamp(min=1),
        num_masked=torch.zeros_like(num_kept),
        num_kept=num_kept,
    )


def nt_xent(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float,
    rows: slice = slice(None),
    term: NegativeTerm = PLAIN,
    instead: Tensor | None = None,
) -> tuple[InfoNce, InfoNce]:
    """SimCLR's NT-Xent (eq. 1): each view against its other view and the 2B - 2 views of the other images.

    The official loss adds the means over both directions, which is twice the mean over all 2B views.

    Args:
        queries: (B, C) unit rows, first views.
        keys: (B, C) unit rows, second views of the same images.
        temperature: Softmax temperature T > 0.
        rows: Images that are contrasted in this call; all are candidates.
        term: How negatives enter the denominator.
        instead: (N, C) other views of `rows`, contrasted in the place of both of theirs; None: no others.

    Returns:
        The contrasts of those images' queries, and of their keys.

    """
    own = torch.arange(len(queries), device=queries.device)[rows]  # (N,)
    first, second = (
        in_batch_info_nce(
            lead[rows] if instead is None else instead,
            torch.cat([follow, lead]),
            own,
            temperature=temperature,
            excluded=own + len(keys),
            term=term,
        )
        for lead, follow in ((queries, keys), (keys, queries))
    )
    return first, second


class _RunningSoftmax:
    """Sum of exp(logit) over candidates, and their mean weighted by it, a chunk of them at a time.

    Both are kept relative to the highest logit so far and rescaled whenever a higher one turns up, so that nothing
    overflows.
    """

    def __init__(self, q: Tensor) -> None:
        self._highest = torch.full_like(q[:, 0], -1e30)  # (N,); finite, so that all may be masked
        self._total = torch.zeros_like(self._highest)  # (N,), (N, C)
        self._pull = torch.zeros_like(q)

    def add(self, logits: Tensor, candidates: Tensor) -> None:
        """Take in (c, C) candidates with (N, c) logits, which are overwritten."""
        higher = torch.maximum(self._highest, logits.amax(dim=1))
        shrink = (self._highest - higher).exp()
        weights = logits.sub_(higher[:, None]).exp_()
        self._total = self._total * shrink + weights.sum(dim=1)
        self._pull = torch.addmm(self._pull * shrink[:, None], weights, candidates)
        self._highest = higher

    @property
    def log_total(self) -> Tensor:
        """(N,) logarithm of the sum; -inf without candidates."""
        return self._highest + self._total.log()

    @property
    def mean(self) -> Tensor:
        """(N, C) weighted mean of the candidates; zero without any."""
        return self._pull / self._total.clamp(min=torch.finfo(self._total.dtype).tiny)[:, None]


class _InfoNceFunction(torch.autograd.Function):
    """The loss and its derivative with respect to q in one pass over chunks of negatives."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        negatives: Tensor,
        temperature: float,
        term: NegativeTerm,
        ids: Tensor | None,
        negative_ids: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """The fields of InfoNce; the first keeps its slope for `backward`."""
        similarity = (q * k).sum(dim=1)  # (N,)
        highest_negative = torch.full_like(similarity, -torch.inf)
        sum_negative = torch.zeros_like(similarity)
        num_masked = torch.zeros_like(similarity)
        tilted = _RunningSoftmax(q)  # by (1 + beta) / T and, where beta is not 0, beta / T
        tilt = _RunningSoftmax(q)
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
            highest_negative = torch.maximum(highest_negative, scores.amax(dim=1))
            if term.hardness:
                tilt.add(scores * (term.hardness / temperature), chunk)
            tilted.add(scores.mul_((1 + term.hardness) / temperature), chunk)
        num_kept = len(negatives) - num_masked
        log_negative = tilted.log_total  # (N,), (N, C)
        pull = tilted.mean
        if term.hardness:
            log_negative = log_negative - tilt.log_total + num_kept.log()
            pull = (1 + term.hardness) * pull - term.hardness * tilt.mean
        positive = similarity / temperature
        # d row_loss / dq; DCL's point is that the negatives' share of the softmax does not scale it
        share = 1.0 if term.decoupled else torch.sigmoid(log_negative - positive)[:, None]
        ctx.save_for_backward(share * (pull - k) / temperature)  # (N, C)
        metrics = (
            similarity > highest_negative,
            similarity,
            sum_negative / num_kept.clamp(min=1),
            num_masked,
            num_kept,
        )
        ctx.mark_non_differentiable(*metrics)
        return term.row_losses(positive, log_negative), *metrics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The slope of each row times the gradient of its loss."""
        (slope,) = ctx.saved_tensors
        return grads[0][:, None] * slope, None, None, None, None, None, None
