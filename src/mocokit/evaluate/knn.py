"""Weighted k-nearest-neighbour accuracy of frozen features (InstDisc sec. 3.4).

Shapes: M bank rows, Q queries, D feature dimension, L classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mocokit.evaluate.features import Features, LabelledImages, extract_features


class KnnProtocol(NamedTuple):
    """Neighbours and the temperature of their votes."""

    k: int
    temperature: float

    def __str__(self) -> str:
        return f"k={self.k}/T={self.temperature}"


PROTOCOLS = (KnnProtocol(20, 0.07), KnnProtocol(200, 0.1))
"""DINO's, and the official MoCo notebook's; reported side by side, since they answer differently."""

CHUNK_BYTES = 256 * 2**20
"""Similarities held at once."""


def knn_accuracy(
    bank: Features, queries: Features, protocols: Sequence[KnnProtocol] = PROTOCOLS, *, device: torch.device
) -> dict[KnnProtocol, float]:
    """Share of queries (0..1) whose class gets the largest sum of exp(cosine / T) over their k nearest bank rows.

    Extra memory stays under about CHUNK_BYTES whatever M and Q are; k beyond M means all of the bank.
    """
    bank_rows = F.normalize(bank.rows.to(device), dim=1)  # (M, D)
    bank_labels, num_classes = bank.labels.to(device), int(bank.labels.max()) + 1
    largest_k = min(max(protocol.k for protocol in protocols), len(bank_rows))
    chunk = max(1, CHUNK_BYTES // (4 * len(bank_rows)))
    correct = dict.fromkeys(protocols, 0)
    for start in range(0, len(queries.rows), chunk):
        rows = F.normalize(queries.rows[start : start + chunk].to(device), dim=1)  # (q, D)
        truth = queries.labels[start : start + chunk].to(device)
        similarity, nearest = (rows @ bank_rows.T).topk(largest_k, dim=1)  # (q, k), descending
        classes = bank_labels[nearest]  # (q, k)
        for protocol in protocols:
            votes = torch.zeros(len(rows), num_classes, device=device)  # (q, L)
            weights = (similarity[:, : protocol.k] / protocol.temperature).exp()
            votes.scatter_add_(1, classes[:, : protocol.k], weights)
            correct[protocol] += int((votes.argmax(dim=1) == truth).sum())
    return {protocol: hits / len(queries.rows) for protocol, hits in correct.items()}


def knn_of(
    embed: Callable[[Tensor], Tensor],
    bank: LabelledImages,
    queries: LabelledImages,
    protocols: Sequence[KnnProtocol] = PROTOCOLS,
    *,
    device: torch.device,
) -> dict[KnnProtocol, float]:
    """kNN accuracy of an embedding of images."""
    return knn_accuracy(
        extract_features(embed, bank, device=device),
        extract_features(embed, queries, device=device),
        protocols,
        device=device,
    )
