"""Slow, independent implementations of the maths, written from the papers' equations, as references for tests."""

import math

import torch
from torch import Tensor


def info_nce_loop(
    q: Tensor, k: Tensor, negatives: Tensor, temperature: float, masked: Tensor | None = None
) -> list[float]:
    """Return MoCo v1 eq. 1, one query and one negative at a time, in Python floats."""
    losses = []
    for i in range(len(q)):
        positive = math.exp(float(q[i] @ k[i]) / temperature)
        total = positive
        for j in range(len(negatives)):
            if masked is None or not masked[i, j]:
                total += math.exp(float(q[i] @ negatives[j]) / temperature)
        losses.append(-math.log(positive / total))
    return losses


def weighted_info_nce_loop(
    positive: float, negatives: list[float], temperature: float, hardness: float, decoupled: bool
) -> float:
    """Return one query's loss from its similarities: Robinson et al. 2021 eq. 4 (tau+ = 0), Yeh et al. 2021 eq. 6."""
    tilts = [math.exp(hardness * s / temperature) for s in negatives]
    mean = sum(tilts) / len(tilts)
    total = sum(tilt / mean * math.exp(s / temperature) for tilt, s in zip(tilts, negatives, strict=True))
    near = math.exp(positive / temperature)
    return -math.log(near / (total if decoupled else near + total))


def knn_loop(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, k: int, temperature: float) -> float:
    """Return the accuracy of weighted kNN, by sorting all similarities of each query."""
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
    """Train a linear classifier from zero weights with torch's autograd and SGD; decay on weights, not on biases."""
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
    """Return BatchNorm of one group (N, C, H, W), without scale and shift, from the definition."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(var + eps)


VocBox = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax in pixels, counted from 1, the last pixel included."""


def voc07_ap_loop(
    truth: list[list[tuple[VocBox, bool]]], found: list[tuple[int, float, VocBox]], threshold: float
) -> float:
    """Return VOC07 average precision (0..1) of one class, from the description in the development kit.

    Args:
        truth: The boxes of each image; True marks a difficult one.
        found: (image, score, box) of each detection; all scores differ.
        threshold: Least overlap of a correct detection.

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
    """Return intersection over union, by counting pixels."""
    pixels_a, pixels_b = (
        {(x, y) for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)} for box in (a, b)
    )
    return len(pixels_a & pixels_b) / len(pixels_a | pixels_b)


def nt_xent_loop(queries: Tensor, keys: Tensor, temperature: float) -> float:
    """Return SimCLR Algorithm 1: l(2k-1, 2k) + l(2k, 2k-1), mean over all 2B views, in Python floats."""
    z = [row for pair in zip(queries, keys, strict=True) for row in pair]  # 2k-1, 2k
    total = 0.0
    for i, row in enumerate(z):
        partner = i + 1 if i % 2 == 0 else i - 1
        others = sum(math.exp(float(row @ other) / temperature) for j, other in enumerate(z) if j != i)
        total -= math.log(math.exp(float(row @ z[partner]) / temperature) / others)
    return total / len(z)


def lars_steps(
    weight: Tensor, gradients: list[Tensor], rates: list[float], *, decay: float, trust: float, classic: bool
) -> Tensor:
    """Return a weight or bias after LARS steps with momentum 0.9, number by number (You et al. 2017, Algorithm 1)."""
    w = [float(value) for value in weight.flatten()]
    v = [0.0] * len(w)
    for gradient, lr in zip(gradients, rates, strict=True):
        g = [float(value) for value in gradient.flatten()]
        local = 1.0
        if weight.ndim > 1:
            g = [gi + decay * wi for gi, wi in zip(g, w, strict=True)]
            lengths = math.sqrt(sum(wi * wi for wi in w)), math.sqrt(sum(gi * gi for gi in g))
            local = trust * lengths[0] / lengths[1] if min(lengths) > 0 else 1.0
        if classic:
            v = [0.9 * vi + lr * local * gi for vi, gi in zip(v, g, strict=True)]
            w = [wi - vi for wi, vi in zip(w, v, strict=True)]
        else:
            v = [0.9 * vi + local * gi for vi, gi in zip(v, g, strict=True)]
            w = [wi - lr * vi for wi, vi in zip(w, v, strict=True)]
    return torch.tensor(w, dtype=weight.dtype).view_as(weight)
