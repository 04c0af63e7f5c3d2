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


VocBox = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax: pixels counted from 1, the last one included."""


def voc07_ap_loop(
    truth: list[list[tuple[VocBox, bool]]], found: list[tuple[int, float, VocBox]], threshold: float
) -> float:
    """VOC07 average precision (0..1) of one class, from the development kit's description, pixel by pixel.

    `truth`: for each image its boxes, and whether each is difficult; `found`: (image, score, box), no score twice.
    """
    taken: set[tuple[int, int]] = set()
    points: list[tuple[float, float]] = []
    right = wrong = 0
    total = sum(not difficult for boxes in truth for _, difficult in boxes)
    for image, _, box in sorted(found, key=lambda row: -row[1]):
        overlaps = [_voc_overlap(box, other) for other, _ in truth[image]]
        best = max(range(len(overlaps)), key=overlaps.__getitem__) if overlaps else -1
        if best < 0 or overlaps[best] <= threshold:
            wrong += 1
        elif not truth[image][best][1]:
            right += (image, best) not in taken
            wrong += (image, best) in taken
            taken.add((image, best))
        if right + wrong:
            points.append((right / total, right / (right + wrong)))
    levels = [number / 10 for number in range(11)]
    return (
        sum(max((precision for recall, precision in points if recall >= level), default=0.0) for level in levels) / 11
    )


def _voc_overlap(a: VocBox, b: VocBox) -> float:
    """Share of pixels in both boxes among those in either, by counting them."""
    pixels_a, pixels_b = (
        {(x, y) for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)} for box in (a, b)
    )
    return len(pixels_a & pixels_b) / len(pixels_a | pixels_b)
