"""Train many linear classifiers at once on cached features, one per pair of learning rate and weight decay.

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
    """Accuracy and settings of the classifier that the held-out rows chose."""

    accuracy: float
    """On the test features, 0..1."""
    lr: float
    weight_decay: float
    at_the_edge: bool
    """True if the chosen rate is the smallest or the largest of the grid: a better one may lie outside."""


@dataclass(frozen=True, kw_only=True)
class Standardise:
    """Affine map of (n, D) rows: each dimension gets mean 0 and variance 1/D, so that rows have length 1 on average."""

    mean: Tensor
    scale: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the standardised rows."""
        return (rows - self.mean) * self.scale


def measure_scale(rows: Tensor, device: torch.device) -> Standardise:
    """Measure the standardisation of (M, D) features; a dimension that is constant over the rows maps to 0."""
    std, mean = torch.std_mean(rows, dim=0)
    # Below 1e-6 of the largest deviation a dimension is rounding noise, and 1 / std would blow it up.
    scale = torch.where(std > 1e-6 * std.max(), 1 / std, 0.0) / math.sqrt(rows.shape[1])
    return Standardise(mean=mean.to(device), scale=scale.to(device))


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Weights of P linear classifiers."""

    weight: Tensor
    """(D, P, L)"""
    bias: Tensor
    """(P, L)"""

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the class scores (B, P, L) of (B, D) rows."""
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
    """Train one classifier per (learning rate, weight decay) pair by SGD with momentum, all on the same batches.

    One forward serves all P classifiers, and the gradient of the cross-entropy is written out instead of taken by
    autograd: (softmax - one-hot) / B for the scores. Weight decay applies to the weights, not to the biases.

    Args:
        features: All rows.
        members: Numbers of the rows to train on.
        pairs: P pairs of (peak learning rate, weight decay).
        standardise: Applied to the rows of each batch.
        num_classes: L.
        batch_size: B; the last batch of an epoch may be smaller.
        schedule: Epochs and the decay of the rates.
        device: Device to compute on.
        seed: Seed of the order of rows.

    """
    dim = features.rows.shape[1]
    num_rows = len(members)
    rates, decays = torch.tensor(pairs, device=device).unbind(1)  # (P,), (P,)
    heads = Heads(
        weight=torch.zeros(dim, len(pairs), num_classes, device=device),
        bias=torch.zeros(len(pairs), num_classes, device=device),
    )
    weight_velocity = torch.zeros_like(heads.weight)
    bias_velocity = torch.zeros_like(heads.bias)
    per_epoch = -(-num_rows // batch_size)  # rounded up
    for step in range(per_epoch * schedule.epochs):
        epoch, number = divmod(step, per_epoch)
        if number == 0:
            order = torch.from_numpy(permutation(seed, Purpose.EPOCH_ORDER, num_rows, epoch))
        chosen = members[order[number * batch_size : (number + 1) * batch_size]]
        rows = standardise(features.rows[chosen].to(device))  # (B, D)
        # d loss / d scores = (softmax - one-hot) / B
        error = heads(rows).softmax(dim=2)  # (B, P, L)
        error[torch.arange(len(rows), device=device), :, features.labels[chosen].to(device)] -= 1
        error /= len(rows)
        gradient = (rows.T @ error.flatten(1)).view_as(heads.weight)  # (D, P, L)
        gradient += decays[:, None] * heads.weight
        factor = schedule.lr(step, steps_per_epoch=per_epoch, peak_lr=1.0)  # shared: only the peaks differ
        weight_velocity.mul_(SGD_MOMENTUM).add_(gradient)
        bias_velocity.mul_(SGD_MOMENTUM).add_(error.sum(dim=0))
        heads.weight.sub_(weight_velocity * (factor * rates)[:, None])
        heads.bias.sub_(bias_velocity * (factor * rates)[:, None])
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
    """Choose a learning rate and a weight decay on held-out training rows, train on all rows, and test once.

    The test features have no influence on the choice.

    Args:
        train: Training features; a random part of them is held out to choose the pair.
        test: Test features.
        protocol: Settings, already fitted to the number of training rows.
        num_classes: L.
        device: Device to compute on.
        seed: Seed of the order of rows and of the held-out part.

    """
    num_rows = len(train.rows)
    held = torch.tensor(draw_indices(num_rows, max(1, round(protocol.held_out_share * num_rows)), seed=seed))
    rest = torch.from_numpy(np.setdiff1d(np.arange(num_rows), held.numpy()))
    standardise = measure_scale(train.rows, device)  # uses no labels, so the held-out rows may take part
    pairs = [(rate, decay) for rate in protocol.rates for decay in protocol.weight_decays]

    def fit(members: Tensor, tried: Sequence[tuple[float, float]]) -> Heads:
        """Train the classifiers on these rows."""
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

    accuracies, losses = score_heads(fit(rest, pairs), train, held, standardise=standardise, device=device)
    lr, weight_decay = best_pair(pairs, accuracies, losses)
    final = fit(torch.arange(num_rows), [(lr, weight_decay)])
    every = torch.arange(len(test.rows))
    accuracy = score_heads(final, test, every, standardise=standardise, device=device)[0][0]
    return FastLinearResult(
        accuracy=accuracy, lr=lr, weight_decay=weight_decay, at_the_edge=lr in (protocol.rates[0], protocol.rates[-1])
    )


@torch.no_grad()
def score_heads(
    heads: Heads,
    features: Features,
    members: Tensor,
    *,
    standardise: Callable[[Tensor], Tensor],
    device: torch.device,
) -> tuple[list[float], list[float]]:
    """Return the accuracy (0..1) and the mean cross-entropy of each of the P classifiers on the rows `members`."""
    hits = torch.zeros(len(heads.bias))
    loss = torch.zeros(len(heads.bias))
    for part in members.split(1024):  # bounds the scores at 1024 x P x L floats
        scores = heads(standardise(features.rows[part].to(device)))  # (B, P, L)
        truth = features.labels[part].to(device)  # (B,)
        hits += (scores.argmax(dim=2) == truth[:, None]).sum(dim=0).cpu()
        truth = truth[:, None].expand(-1, scores.shape[1])  # (B, P)
        loss += F.cross_entropy(scores.transpose(1, 2), truth, reduction="none").sum(dim=0).cpu()
    return (hits / len(members)).tolist(), (loss / len(members)).tolist()


def best_pair(
    pairs: Sequence[tuple[float, float]], accuracies: Sequence[float], losses: Sequence[float]
) -> tuple[float, float]:
    """Return the pair with the highest accuracy; ties go to the lower loss. A NaN or infinite loss never wins."""
    scores = [
        (accuracy, -loss) if math.isfinite(loss) else (-1.0, 0.0)
        for accuracy, loss in zip(accuracies, losses, strict=True)
    ]
    return pairs[max(range(len(pairs)), key=scores.__getitem__)]
