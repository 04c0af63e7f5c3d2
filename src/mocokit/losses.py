"""InfoNCE, the loss of every method here, as pure functions of tensors: no module, no state, no ranks.

InfoNCE is the loss of CPC (van den Oord et al. 2018, eq. 4): pick the positive among 1 + K candidates by a softmax
over similarity / T. The methods differ in where the candidates come from, not in the objective (MoCo v1 sec. 3.2 and
fig. 2):

* `info_nce`: K negatives without gradient, from a queue or a memory bank (MoCo v1 eq. 1);
* `in_batch_info_nce`: the other keys of the batch, so K = B - 1 (end-to-end; MoCo v3 without its factor 2T);
* `nt_xent`: the other views of the batch, so K = 2B - 2 (SimCLR eq. 1); it is `in_batch_info_nce` twice.

log(K + 1) - loss is a lower bound of the mutual information of query and key, in nats (CPC eq. 5): `InfoNce.mi_bound`.

`NegativeTerm` changes how negatives enter the denominator: without the positive beside them (decoupled), or with more
weight for harder ones.

Shapes: N queries of this call; C embedding dimension; K negatives, c of them in a chunk; M keys; B global batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}
"""Scores N * c that `info_nce` holds at a time, whatever K is. In float32, 4 MB on a CPU: about what the caches hold.
64 MB on a GPU: so large that a kernel runs longer than its launch takes."""


@dataclass(frozen=True, kw_only=True)
class NegativeTerm:
    """Settings of the softmax denominator; the default sums the positive and each negative (CPC, MoCo, SimCLR)."""

    decoupled: bool = False
    """True to leave the positive out of the denominator (DCL: Yeh et al. 2021, arXiv:2110.06848 eq. 6). The gradient of
    a query that already finds its positive then no longer fades."""
    hardness: float = 0.0
    """beta >= 0: each negative has a weight in proportion to exp(beta * q . k- / T), with mean 1 over a query's
    negatives (Robinson et al. 2021, arXiv:2010.04592 eq. 4 with tau+ = 0)."""

    def __post_init__(self) -> None:
        if self.hardness < 0:
            raise ValueError(f"method.hardness={self.hardness}: must be 0 (all negatives alike) or more")

    def chance_loss(self, num_negatives: int) -> float:
        """Return the loss when all similarities are equal, as for a network that tells nothing apart."""
        return math.log(num_negatives + (0 if self.decoupled else 1))

    def row_losses(self, positive: Tensor, log_negative: Tensor) -> Tensor:
        """Return the (N,) losses.

        Args:
            positive: (N,) q . k+ / T.
            log_negative: (N,) logarithm of the sum over negatives of weight * exp(q . k- / T).

        """
        margin = log_negative - positive
        # -log(exp(p) / (exp(p) + sum)) = log(1 + exp(log sum - p)); DCL drops exp(p) from the denominator.
        return margin if self.decoupled else torch.logaddexp(margin, torch.zeros_like(margin))


PLAIN = NegativeTerm()


class InfoNce(NamedTuple):
    """Loss and metrics of each query; only `row_losses` has a gradient."""

    row_losses: Tensor
    """(N,) cross entropy of picking the positive among 1 + K candidates, as changed by a `NegativeTerm`."""
    correct: Tensor
    """(N,) True if the positive scored above every negative; a tie is a miss. Its mean is the (K+1)-way accuracy."""
    positive_similarity: Tensor
    """(N,) q . k+, before the temperature."""
    negative_similarity: Tensor
    """(N,) mean q . k- over the unmasked negatives, before the temperature."""
    num_masked: Tensor
    """(N,) number of masked negatives."""
    num_kept: Tensor
    """(N,) number of unmasked negatives, K - num_masked."""

    def per_image(self, queries: int) -> "InfoNce":
        """Return the means over each image's `queries` consecutive rows: (N,) -> (N / queries,)."""
        if queries == 1:
            return self
        floats = (field.to(self.row_losses.dtype).unflatten(0, (-1, queries)).mean(dim=1) for field in self)
        return InfoNce(*floats)

    @property
    def mi_bound(self) -> Tensor:
        """(N,) log(K + 1) - loss, in nats. The mean bounds I(query; key) from below (CPC eq. 5), for the plain loss."""
        return (self.num_kept + 1).log() - self.row_losses.detach()


def row_metrics(directions: Sequence[InfoNce], losses: Tensor, *, term: NegativeTerm = PLAIN) -> dict[str, Tensor]:
    """Return the (N,) metrics that a run logs, by name; no gradient.

    Args:
        directions: The result of one contrast, or the two of a symmetric loss, whose metrics are averaged.
        losses: (N,) the losses that the run minimises.
        term: How negatives entered those losses; without the plain one, `mi_bound` is left out: it would be no bound.

    """
    values: dict[str, list[Tensor]] = {
        "contrast_acc": [nce.correct.to(nce.row_losses.dtype) for nce in directions],
        "positive_similarity": [nce.positive_similarity for nce in directions],
        "negative_similarity": [nce.negative_similarity for nce in directions],
    }
    if term == PLAIN:  # the bound holds for InfoNCE itself
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
    """Return InfoNCE with one positive and K negatives a query (MoCo v1 eq. 1; CPC eq. 4).

    The (N, K) scores are never in memory at once. One pass over chunks of negatives sums up both the loss and its
    gradient (as attention kernels do: Milakov and Gimelshein 2018; Dao et al. 2022). So extra memory does not grow
    with K (with N = 256 and K = 65,536, all float32 scores would be 64 MiB), and the backward pass is one product.

    Args:
        q: (N, C) unit rows.
        k: (N, C) unit rows, the positive of each query; no gradient flows into it.
        negatives: (K, C) unit rows; no gradient flows into them.
        temperature: Softmax temperature T > 0.
        ids: (N,) image of each query. With `negative_ids`, negatives of a query's own image are masked.
        negative_ids: (K,) image of each negative.
        term: How negatives enter the denominator.

    Raises:
        ValueError: Only one of `ids` and `negative_ids` is given.

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
    """Return InfoNCE whose negatives are the other keys of the batch; the gradient flows into queries and keys.

    Args:
        q: (N, C) unit rows.
        keys: (M, C) unit rows: positives and negatives of all queries.
        positives: (N,) index of each query's positive in `keys`.
        temperature: Softmax temperature T > 0.
        excluded: (N,) index of one key that is not a candidate (in SimCLR the query itself); None: all are.
        term: How negatives enter the denominator.

    """
    similarity = q @ keys.T  # (N, M)
    positive = similarity.gather(1, positives[:, None])[:, 0]  # (N,)
    left_out = positives[:, None] if excluded is None else torch.stack([positives, excluded], dim=1)  # (N, 1 or 2)
    negatives = similarity.scatter(1, left_out, -torch.inf)  # (N, M); exp(-inf) = 0 takes these out of each sum
    num_kept = torch.full_like(positive, keys.shape[0] - left_out.shape[1])  # (N,)
    log_negative = (negatives * ((1 + term.hardness) / temperature)).logsumexp(dim=1)  # (N,)
    if term.hardness:
        # Z = K * sum exp((1 + beta) s / T) / sum exp(beta s / T): the weights exp(beta s / T), scaled to mean 1
        log_negative = log_negative + num_kept.log() - (negatives * (term.hardness / temperature)).logsumexp(dim=1)
    row_losses = term.row_losses(positive / temperature, log_negative)
    others = negatives.detach()  # (N, M)
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
    crops: Tensor | None = None,
) -> tuple[InfoNce, InfoNce]:
    """Return SimCLR's NT-Xent (eq. 1) in both directions: the positive of a view is the image's other view.

    The negatives are the 2B - 2 views of the other images. The official loss adds the means over both directions,
    which is twice the mean over all 2B views.

    Args:
        queries: (B, C) unit rows, first views.
        keys: (B, C) unit rows, second views of the same images.
        temperature: Softmax temperature T > 0.
        rows: Images of this call, N of them; the candidates are always the views of all B images.
        term: How negatives enter the denominator.
        crops: (N, C) further views of the images `rows`, which take the place of their queries and of their keys as
            the views that look for a positive; None: the queries and keys themselves.

    Returns:
        InfoNCE of those images' queries against the keys, and of their keys against the queries.

    """
    own = torch.arange(len(queries), device=queries.device)[rows]  # (N,)
    first, second = (
        in_batch_info_nce(
            lead[rows] if crops is None else crops,  # (N, C)
            torch.cat([follow, lead]),  # (2B, C): row i is the positive of image i, row B + i its own view
            own,
            temperature=temperature,
            excluded=own + len(keys),
            term=term,
        )
        for lead, follow in ((queries, keys), (keys, queries))
    )
    return first, second


class _RunningSoftmax:
    """Sum of exp(logit) over candidates, and their softmax-weighted mean, over one chunk of candidates after another.

    Both are stored divided by exp(highest logit so far), and rescaled when a chunk has a higher one. So no exp gets an
    argument above 0, and nothing overflows: with T = 0.07, logits reach 14, and with a large beta exp would pass
    float32's limit at 88.
    """

    def __init__(self, q: Tensor) -> None:
        # (N,) finite, not -inf: in a chunk with all of a query's candidates masked, -inf - -inf would be NaN
        self._highest = torch.full_like(q[:, 0], -1e30)
        self._total = torch.zeros_like(self._highest)  # (N,) sum of exp(logit - highest)
        self._weighted = torch.zeros_like(q)  # (N, C) sum of exp(logit - highest) * candidate

    def add(self, logits: Tensor, candidates: Tensor) -> None:
        """Add (c, C) candidates with (N, c) logits; overwrites `logits`, which saves a copy of the largest tensor."""
        higher = torch.maximum(self._highest, logits.amax(dim=1))  # (N,)
        shrink = (self._highest - higher).exp()  # (N,) rescales what was summed so far
        weights = logits.sub_(higher[:, None]).exp_()  # (N, c)
        self._total = self._total * shrink + weights.sum(dim=1)
        self._weighted = torch.addmm(self._weighted * shrink[:, None], weights, candidates)  # (N, C) + (N, c) @ (c, C)
        self._highest = higher

    @property
    def log_total(self) -> Tensor:
        """(N,) logarithm of the sum of exp(logit); -inf if all candidates were masked."""
        return self._highest + self._total.log()

    @property
    def mean(self) -> Tensor:
        """(N, C) softmax-weighted mean of the candidates; 0 if all were masked."""
        return self._weighted / self._total.clamp(min=torch.finfo(self._total.dtype).tiny)[:, None]


class _InfoNceFunction(torch.autograd.Function):
    """InfoNCE and its derivative with respect to q, in one pass over chunks of negatives.

    With s_j = q . n_j, p = q . k+ / T and Z = sum_j w_j exp(s_j / T) (w_j = 1 for the plain loss),

        loss       = log(exp(p) + Z) - p,    or log Z - p if decoupled
        d loss/d q = share * (pull - k) / T, share = Z / (exp(p) + Z), or 1 if decoupled
        pull       = T * d log Z / d q       the mean of the negatives, weighted by exp(s_j / T) for the plain loss

    With hardness beta, log Z = log sum exp((1 + beta) s / T) - log sum exp(beta s / T) + log K, so
    pull = (1 + beta) * mean weighted by exp((1 + beta) s / T) - beta * mean weighted by exp(beta s / T).
    """

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
        """Return the fields of InfoNce, and save d loss / d q for `backward`."""
        similarity = (q * k).sum(dim=1)  # (N,)
        highest_negative = torch.full_like(similarity, -torch.inf)  # (N,)
        sum_negative = torch.zeros_like(similarity)  # (N,)
        num_masked = torch.zeros_like(similarity)  # (N,)
        # log Z = log numerator - log denominator + log K if beta > 0; else log numerator
        numerator = _RunningSoftmax(q)  # of logits (1 + beta) s / T
        denominator = _RunningSoftmax(q)  # of logits beta s / T; unused if beta is 0
        step = max(1, CHUNK_ELEMENTS.get(q.device.type, 2**20) // len(q))
        for start in range(0, len(negatives), step):
            part = slice(start, start + step)
            chunk = negatives[part]  # (c, C)
            scores = q @ chunk.T  # (N, c)
            if ids is not None and negative_ids is not None:
                masked = ids[:, None] == negative_ids[None, part]  # (N, c)
                num_masked += masked.sum(dim=1)
                sum_negative += scores.masked_fill(masked, 0.0).sum(dim=1)
                scores = scores.masked_fill_(masked, -torch.inf)  # exp(-inf) = 0
            else:
                sum_negative += scores.sum(dim=1)
            highest_negative = torch.maximum(highest_negative, scores.amax(dim=1))
            if term.hardness:
                denominator.add(scores * (term.hardness / temperature), chunk)
            numerator.add(scores.mul_((1 + term.hardness) / temperature), chunk)  # last: overwrites the scores
        num_kept = len(negatives) - num_masked
        log_negative = numerator.log_total  # (N,) log Z
        pull = numerator.mean  # (N, C)
        if term.hardness:
            log_negative = log_negative - denominator.log_total + num_kept.log()
            pull = (1 + term.hardness) * pull - term.hardness * denominator.mean
        positive = similarity / temperature  # (N,) p
        # (N, 1) Z / (exp(p) + Z). DCL's point is to drop it: it goes to 0 for queries that find their positive.
        share = 1.0 if term.decoupled else torch.sigmoid(log_negative - positive)[:, None]
        ctx.save_for_backward(share * (pull - k) / temperature)  # (N, C) d loss / d q: all that `backward` needs
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
        """Return d loss / d q of each row times the gradient of its loss."""
        (slope,) = ctx.saved_tensors  # (N, C)
        return grads[0][:, None] * slope, None, None, None, None, None, None
