"""Weighted k-nearest-neighbour accuracy of frozen features (InstDisc sec. 3.4).

Memory stays bounded: a chunk of the bank is compared with a chunk of the queries, and each query keeps its best k rows
so far. The (Q, M) similarities and a normalised copy of the bank never exist as a whole. The bank may be sharded over
ranks.

Shapes: M bank rows, Q queries, D feature dimension, L classes, m and q rows of a chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mocokit import distributed
from mocokit.evaluate.features import Features, LabelledImages, are_finite, extract_features, require_finite


class KnnProtocol(NamedTuple):
    """Number of neighbours, and the temperature T of their votes."""

    k: int
    temperature: float

    def __str__(self) -> str:
        return f"k={self.k}/T={self.temperature}"


PROTOCOLS = (KnnProtocol(20, 0.07), KnnProtocol(200, 0.1))
"""DINO's setting and the official MoCo notebook's; both are reported, since they give different accuracies."""

CHUNK_BYTES = 256 * 2**20
"""Memory of a bank chunk, a query chunk and their similarities together."""

QUERY_CHUNK = 1024
"""Largest q; long rows get a smaller one, so that CHUNK_BYTES holds."""


def knn_accuracy(
    bank: Features,
    queries: Features,
    protocols: Sequence[KnnProtocol] = PROTOCOLS,
    *,
    device: torch.device,
    bank_is_shard: bool = False,
) -> dict[KnnProtocol, float]:
    """Return the kNN accuracy (0..1) of `queries` for each protocol, computed in one pass.

    Each of the k bank rows nearest to a query votes for its class with weight exp(cosine / T). Extra memory stays under
    about CHUNK_BYTES + 8 Q k bytes for any M. If k exceeds M, the whole bank votes.

    Args:
        bank: Rows that vote.
        queries: Rows to classify; with `bank_is_shard` the same on every rank.
        protocols: Numbers of neighbours and temperatures.
        device: Device that compares the chunks.
        bank_is_shard: True if `bank` is this rank's part of the bank; every rank returns the accuracy on the whole.

    Raises:
        ValueError: A feature is NaN or infinite; on all ranks, if they share the bank.

    """
    is_bad = not (are_finite(bank) and are_finite(queries))
    require_finite(holds=not (distributed.any_rank(is_bad) if bank_is_shard else is_bad))
    k = max(protocol.k for protocol in protocols)
    num_classes = int(bank.labels.max()) + 1 if len(bank.labels) else 0
    similarity, classes = nearest_classes(bank, queries.rows, k, device=device)  # (Q, k), (Q, k)
    if bank_is_shard:
        num_classes = distributed.max_over_ranks(num_classes)
    correct = dict.fromkeys(protocols, 0)
    for part in _slices(len(queries.rows), QUERY_CHUNK):
        best = similarity[part]  # (q, k)
        voters = classes[part]
        if bank_is_shard:
            best, voters = _merge_ranks(best, voters, k)
        truth = queries.labels[part].to(best.device)
        for protocol, hits in _count_hits(best, voters, truth, protocols, num_classes=num_classes).items():
            correct[protocol] += hits
    return {protocol: hits / len(queries.rows) for protocol, hits in correct.items()}


def nearest_classes(bank: Features, queries: Tensor, k: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the cosine and the class of the k bank rows nearest to each query, nearest first; k is at most M.

    Args:
        bank: (M, D) rows on any device, in memory or mapped from a file; never copied as a whole.
        queries: (Q, D) rows.
        k: Neighbours to keep per query.
        device: Device that compares the chunks.

    Returns:
        Cosines (Q, k) float32 and classes (Q, k) int32 on `device`.

    """
    num_queries = len(queries)
    width = queries.shape[1]
    k = min(k, len(bank.rows))
    best = torch.full((num_queries, k), -torch.inf, device=device)
    classes = torch.zeros(num_queries, k, dtype=torch.int32, device=device)
    # q D + m (D + q) floats of 4 bytes: the query chunk gets at most half of CHUNK_BYTES, the bank chunk and the
    # similarities the other half.
    q = max(1, min(QUERY_CHUNK, CHUNK_BYTES // (8 * width)))
    m = max(1, CHUNK_BYTES // (8 * (width + q)))
    for bank_part in _slices(len(bank.rows), m):
        rows = _unit_rows(bank.rows[bank_part], device)  # (m, D)
        labels = bank.labels[bank_part].to(device=device, dtype=torch.int32)  # (m,)
        for part in _slices(num_queries, q):
            scores = _unit_rows(queries[part], device) @ rows.T  # (q, m)
            nearest, index = scores.topk(min(k, len(rows)), dim=1)
            candidates = torch.cat([best[part], nearest], dim=1)  # (q, up to 2k)
            best[part], order = candidates.topk(k, dim=1)  # descending
            classes[part] = torch.cat([classes[part], labels[index]], dim=1).gather(1, order)
    return best, classes


def _unit_rows(rows: Tensor, device: torch.device) -> Tensor:
    return F.normalize(rows.to(device=device, dtype=torch.float32), dim=1)


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _merge_ranks(best: Tensor, classes: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest of all ranks' candidates for each query; every rank gets the same result."""
    rows = len(best)
    num_ranks = distributed.world_size()
    widest = distributed.max_over_ranks(best.shape[1])  # a shard of fewer than k rows offers fewer candidates
    missing = widest - best.shape[1]
    best = F.pad(best, (0, missing), value=-torch.inf)
    classes = F.pad(classes, (0, missing))
    counts = [rows] * num_ranks
    every = [torch.cat(distributed.all_gather_rows(part, counts).split(rows), dim=1) for part in (best, classes)]
    nearest, order = every[0].topk(min(k, every[0].shape[1]), dim=1)  # (q, k) of (q, R * widest)
    return nearest, every[1].gather(1, order)


def _count_hits(
    similarity: Tensor, classes: Tensor, truth: Tensor, protocols: Sequence[KnnProtocol], *, num_classes: int
) -> dict[KnnProtocol, int]:
    """Return the number of correctly classified queries of a chunk, by protocol."""
    hits = {}
    for protocol in protocols:
        votes = torch.zeros(len(truth), num_classes, device=similarity.device)  # (q, L)
        weights = (similarity[:, : protocol.k] / protocol.temperature).exp()  # exp(-inf) = 0: padding does not vote
        votes.scatter_add_(1, classes[:, : protocol.k].long(), weights)
        hits[protocol] = int((votes.argmax(dim=1) == truth).sum())
    return hits


def knn_of(
    embed: Callable[[Tensor], Tensor],
    bank: LabelledImages,
    queries: LabelledImages,
    protocols: Sequence[KnnProtocol] = PROTOCOLS,
    *,
    device: torch.device,
) -> dict[KnnProtocol, float]:
    """Return the kNN accuracy (0..1) of `embed` for each protocol: extract both sets of features, then compare them."""
    return knn_accuracy(
        extract_features(embed, bank, device=device),
        extract_features(embed, queries, device=device),
        protocols,
        device=device,
    )
