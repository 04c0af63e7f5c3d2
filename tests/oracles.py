"""Slow, independent versions of the maths, written from the papers' equations, to compare with."""

import math

import torch
from torch import Tensor


def info_nce_loop(
    q: Tensor, k: Tensor, negatives: Tensor, temperature: float, masked: Tensor | None = None
) -> list[float]:
    """MoCo v1 eq. 1, one query and one negative at a time, in Python floats."""
    losses = []
    for i in range(len(q)):
        positive = math.exp(float(q[i] @ k[i]) / temperature)
        total = positive
        for j in range(len(negatives)):
            if masked is None or not masked[i, j]:
                total += math.exp(float(q[i] @ negatives[j]) / temperature)
        losses.append(-math.log(positive / total))
    return losses


def knn_loop(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, k: int, temperature: float) -> float:
    """Weighted kNN by sorting all similarities of each query."""
    bank = bank / bank.norm(dim=1, keepdim=True)
    hits = 0
    for query, label in zip(queries, labels, strict=True):
        similarity = [(float(query / query.norm() @ row), int(c)) for row, c in zip(bank, bank_labels, strict=True)]
        votes: dict[int, float] = {}
        for s, c in sorted(similarity, reverse=True)[:k]:
            votes[c] = votes.get(c, 0.0) + math.exp(s / temperature)
        hits += max(votes, key=lambda c: votes[c]) == int(label)
    return hits / len(queries)


def sgd_classifier(
    rows: Tensor, labels: Tensor, batches: list[list[int]], rates: list[float], weight_decay: float, num_classes: int
) -> tuple[Tensor, Tensor]:
    """One linear classifier from zero weights by torch's own autograd and SGD, decay on the weights alone."""
    head = torch.nn.Linear(rows.shape[1], num_classes)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    groups = [{"params": [head.weight], "weight_decay": weight_decay}, {"params": [head.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    for batch, rate in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(rows[batch]), labels[batch]).backward()
        optimizer.step()
    return head.weight.detach(), head.bias.detach()


def batchnorm_rows(x: Tensor, eps: float) -> Tensor:
    """BatchNorm of one group (N, C, H, W), without affine, from the definition."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(var + eps)
