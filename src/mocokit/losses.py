"""InfoNCE: pure functions of tensors; no module, no state, no rank.

Shapes: N queries of this call, C feature dimension, K negatives.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class InfoNce(NamedTuple):
    """Result of `info_nce`; the last three carry no gradient."""

    row_losses: Tensor
    """(N,) cross entropy of picking the positive among 1 + K candidates."""
    correct: Tensor
    """(N,) whether the positive scored above every negative."""
    positive_similarity: Tensor
    """(N,) q . k+, before the temperature."""
    negative_similarity: Tensor
    """(N,) mean q . k- over the negatives that count, before the temperature."""


def info_nce(q: Tensor, k: Tensor, negatives: Tensor, *, temperature: float, masked: Tensor | None = None) -> InfoNce:
    """InfoNCE with one positive and K negatives a query (MoCo v1 eq. 1; CPC eq. 4).

    Args:
        q: (N, C) unit rows.
        k: (N, C) unit rows, the positive of each query; no gradient flows into it.
        negatives: (K, C) unit rows.
        temperature: Softmax temperature T > 0.
        masked: (N, K) True where a negative must not count, for example a key of the query's own image.

    """
    positive = (q * k.detach()).sum(dim=1, keepdim=True)  # (N, 1)
    negative = q @ negatives.T  # (N, K)
    if masked is not None:
        negative = negative.masked_fill(masked, -torch.inf)
    logits = torch.cat([positive, negative], dim=1) / temperature  # (N, 1+K)
    labels = torch.zeros(len(q), dtype=torch.long, device=q.device)  # the positive is column 0
    row_losses = F.cross_entropy(logits, labels, reduction="none")  # (N,)
    with torch.no_grad():
        correct = contrast_acc(positive, negative)
        if masked is None:
            mean_negative = negative.mean(dim=1)
        else:
            kept = (~masked).sum(dim=1).clamp(min=1)
            mean_negative = negative.masked_fill(masked, 0.0).sum(dim=1) / kept
    return InfoNce(row_losses, correct, positive.detach().squeeze(1), mean_negative)


def contrast_acc(positive: Tensor, negative: Tensor) -> Tensor:
    """(N,) whether positive (N, 1) beats each column of negative (N, K); a tie is a miss.

    Its mean is the (K+1)-way accuracy, not ImageNet accuracy.
    """
    return positive.squeeze(1) > negative.amax(dim=1)
