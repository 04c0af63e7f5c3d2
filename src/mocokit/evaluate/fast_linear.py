"""Linear classification on cached features: a classifier for each rate and weight decay, all trained at once.

Shapes: M rows of features, B rows of a batch, D feature dimension, P classifiers, L classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mocokit.evaluate.features import Features, draw_indices
from mocokit.evaluate.protocols import FastLinearProtocol, Schedule
from mocokit.randomness import Purpose, permutation

SGD_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class FastLinearResult:
    """How the chosen classifier does."""

    accuracy: float
    """On the test features, 0..1."""
    lr: float
    weight_decay: float
    at_the_edge: bool
    """Whether the chosen rate is the smallest or largest that was tried."""


@dataclass(frozen=True, kw_only=True)
class Standardise:
    """(n, D) -> (n, D): mean 0 and equal variance in each dimension, rows of length 1 on average."""

    mean: Tensor
    scale: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Standardised `rows`."""
        return (rows - self.mean) * self.scale


def measure_scale(rows: Tensor, device: torch.device) -> Standardise:
    """The standardisation of (M, D) features; a dimension that is constant in them is left out as 0."""
    std, mean = torch.std_mean(rows, dim=0)
    scale = torch.where(std > 1e-6 * std.max(), 1 / std, 0.0) / math.sqrt(rows.shape[1])
    return Standardise(mean=mean.to(device), scale=scale.to(device))


@dataclass(frozen=True, kw_only=True)
class Heads:
    """P linear classifiers."""

    weight: Tensor
    """(D, P, L)"""
    bias: Tensor
    """(P, L)"""

    def __call__(self, rows: Tensor) -> Tensor:
        """Scores (B, P, L) of (B, D) rows."""
        dim, heads, classes = self.weight.shape
        return (rows @ self.weight.view(dim, heads * classes)).view(-1, heads, classes) + self.bias


@torch.no_grad()
def train_heads(
    features: Features,
    members: Tensor,
    pairs: Sequence[tuple[float, float]],
    *,
    standardise: Callable[[Tensor], Tensor],
    num_classes: int,
    batch_size: int,
    schedule: Schedule,
    device: torch.device,
    seed: int,
) -> Heads:
    """Train a classifier for each (rate, weight decay) by SGD with momentum, all on the same batches of `members`.

    The gradient is written out: (softmax - one-hot) / B, once for all classifiers. Weight decay spares the biases.
    """
    dim = features.rows.shape[1]
    num_rows = len(members)
    rates, decays = torch.tensor(pairs, device=device).unbind(1)  # (P,), (P,)
    heads = Heads(
        weight=torch.zeros(dim, len(pairs), num_classes, device=device),
        bias=torch.zeros(len(pairs), num_classes, device=device),
    )
    velocity = torch.zeros_like(heads.weight), torch.zeros_like(heads.bias)
    per_epoch = -(-num_rows // batch_size)
    for step in range(per_epoch * schedule.epochs):
        epoch, number = divmod(step, per_epoch)
        if number == 0:
            order = torch.from_numpy(permutation(seed, Purpose.EPOCH_ORDER, num_rows, epoch))
        chosen = members[order[number * batch_size : (number + 1) * batch_size]]
        rows = standardise(features.rows[chosen].to(device))  # (B, D)
        error = heads(rows).softmax(dim=2)  # (B, P, L)
        error[torch.arange(len(rows), device=device), :, features.labels[chosen].to(device)] -= 1
        error /= len(rows)
        gradient = (rows.T @ error.flatten(1)).view_as(heads.weight)  # (D, P, L)
        gradient += decays[:, None] * heads.weight
        factor = schedule.lr(step, steps_per_epoch=per_epoch, peak_lr=1.0)
        velocity[0].mul_(SGD_MOMENTUM).add_(gradient)
        velocity[1].mul_(SGD_MOMENTUM).add_(error.sum(dim=0))
        heads.weight.sub_(velocity[0] * (factor * rates)[:, None])
        heads.bias.sub_(velocity[1] * (factor * rates)[:, None])
    return heads


def fast_linear(
    train: Features,
    test: Features,
    protocol: FastLinearProtocol,
    *,
    num_classes: int,
    device: torch.device,
    seed: int,
) -> FastLinearResult:
    """Choose a rate and a weight decay without the test features, then train on all of `train` and test once.

    Args:
        train: Features to train on, a random part of which chooses.
        test: Features to test on.
        protocol: Already fitted to the number of rows.
        num_classes: L.
        device: Where to compute.
        seed: Of the order of rows and of the part that chooses.

    """
    num_rows = len(train.rows)
    held = torch.tensor(draw_indices(num_rows, max(1, round(protocol.held_out_share * num_rows)), seed=seed))
    rest = torch.from_numpy(np.setdiff1d(np.arange(num_rows), held.numpy()))
    standardise = measure_scale(train.rows, device)  # needs no labels
    pairs = [(rate, decay) for rate in protocol.rates for decay in protocol.weight_decays]

    def fit(members: Tensor, tried: Sequence[tuple[float, float]]) -> Heads:
        """A classifier for each pair that is tried, trained on those rows."""
        return train_heads(
            train,
            members,
            tried,
            standardise=standardise,
            num_classes=num_classes,
            batch_size=protocol.batch_size,
            schedule=protocol.schedule,
            device=device,
            seed=seed,
        )

    judged = judge_heads(fit(rest, pairs), train, held, standardise=standardise, device=device)
    lr, weight_decay = best_pair(pairs, *judged)
    final = fit(torch.arange(num_rows), [(lr, weight_decay)])
    every = torch.arange(len(test.rows))
    accuracy = judge_heads(final, test, every, standardise=standardise, device=device)[0][0]
    return FastLinearResult(
        accuracy=accuracy, lr=lr, weight_decay=weight_decay, at_the_edge=lr in (protocol.rates[0], protocol.rates[-1])
    )


@torch.no_grad()
def judge_heads(
    heads: Heads,
    features: Features,
    members: Tensor,
    *,
    standardise: Callable[[Tensor], Tensor],
    device: torch.device,
) -> tuple[list[float], list[float]]:
    """Accuracy (0..1) and mean cross-entropy of each classifier on the rows `members`."""
    hits = torch.zeros(len(heads.bias))
    loss = torch.zeros(len(heads.bias))
    for part in members.split(1024):
        scores = heads(standardise(features.rows[part].to(device)))  # (B, P, L)
        truth = features.labels[part].to(device)  # (B,)
        hits += (scores.argmax(dim=2) == truth[:, None]).sum(dim=0).cpu()
        truth = truth[:, None].expand(-1, scores.shape[1])  # (B, P)
        loss += F.cross_entropy(scores.transpose(1, 2), truth, reduction="none").sum(dim=0).cpu()
    return (hits / len(members)).tolist(), (loss / len(members)).tolist()


def best_pair(
    pairs: Sequence[tuple[float, float]], accuracies: Sequence[float], losses: Sequence[float]
) -> tuple[float, float]:
    """The pair of the highest accuracy; among equals that of the lowest loss. A NaN loss loses against any other."""
    scores = [
        (accuracy, -loss) if math.isfinite(loss) else (-1.0, 0.0)
        for accuracy, loss in zip(accuracies, losses, strict=True)
    ]
    return pairs[max(range(len(pairs)), key=scores.__getitem__)]
