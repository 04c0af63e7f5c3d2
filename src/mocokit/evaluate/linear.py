"""Train a linear classifier on a frozen backbone, as published: every epoch embeds new random crops.

Shapes: n rows of a batch, D feature dimension, L classes.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocokit import distributed
from mocokit.data.loading.loader import WholeEpochs, build_loader
from mocokit.data.single_view import SingleViews
from mocokit.data.views import PlainBatch
from mocokit.distributed.gradients import gradient_sum
from mocokit.engine.optimizer import set_lr
from mocokit.evaluate.features import Features, LabelledImages, count_hits
from mocokit.evaluate.frozen import frozen
from mocokit.evaluate.protocols import BatchAndSchedule, LinearProtocol
from mocokit.evaluate.rank_shares import count_batch
from mocokit.nets.backbones import build_seeded
from mocokit.randomness import Purpose, torch_seed

SCORE_CHUNK = 8192
"""Rows scored at once."""


def build_classifier(feature_dim: int, num_classes: int, *, init_std: float | None, seed: int) -> nn.Linear:
    """Return a linear layer with weights ~ N(0, init_std) and bias 0; None keeps torch's own initial weights."""
    head = build_seeded(lambda: nn.Linear(feature_dim, num_classes), torch_seed(seed, Purpose.MODEL_INIT, 1))
    if init_std is not None:
        draws = torch.Generator().manual_seed(torch_seed(seed, Purpose.MODEL_INIT, 2))
        nn.init.normal_(head.weight, std=init_std, generator=draws)
        nn.init.zeros_(head.bias)
    return head


def train_linear(
    backbone: nn.Module,
    embed: Callable[[Tensor], Tensor],
    train: LabelledImages,
    test: Features,
    protocol: LinearProtocol,
    *,
    device: torch.device,
    seed: int,
    on_epoch: Callable[[int, float], None] = lambda _epoch, _accuracy: None,
) -> list[float]:
    """Train a linear classifier on the features of augmented images; return the test accuracy (0..1) of each epoch.

    Each rank embeds its part of every batch, and gradients are summed over ranks. The backbone stays in eval mode, and
    none of its bits changes. So the test features are computed once, beforehand.

    Args:
        backbone: Network whose weights are checked to stay frozen.
        embed: Maps (n, 3, S, S) uint8 pixels on `device` to (n, D) features, by that network.
        train: Images to train on.
        test: Features of the test images.
        protocol: Settings, already fitted to the number of training images.
        device: Device to compute on.
        seed: Seed of the crops, the order and the classifier's initial weights.
        on_epoch: Called after each epoch with its number, from 1 on, and the test accuracy.

    Raises:
        FrozenWeightsMovedError: A parameter or BatchNorm statistic of the backbone changed.
        ValueError: Too many images can't be read (see ReadTally).

    """
    order = build_order(train, protocol, seed=seed)
    labels = torch.tensor(train.labels)
    head = build_classifier(test.rows.shape[1], len(train.class_names), init_std=protocol.init_std, seed=seed)
    head = head.to(device)
    gradients = gradient_sum(head)
    optimizer = torch.optim.SGD(
        head.parameters(), lr=protocol.lr, momentum=0.9, weight_decay=protocol.weight_decay, nesterov=protocol.nesterov
    )
    accuracies: list[float] = []
    with frozen(backbone):
        for step, (pixels, indices, bad) in enumerate(build_training_loader(train, order, device=device, seed=seed)):
            num_rows = sum(count_batch(train.tally, len(indices), bad))
            set_lr(optimizer, protocol.schedule.lr(step, steps_per_epoch=order.steps_per_epoch, peak_lr=protocol.lr))
            if num_rows:  # 0 if no image of the batch could be read
                rows = torch.empty(0, head.in_features, device=device)  # this rank's part may be empty
                if len(indices):
                    with torch.no_grad():
                        rows = embed(pixels.to(device, non_blocking=True)).to(head.weight.dtype)  # (n, D)
                targets = labels[indices].to(device)
                gradients.backward(gradients.forward(mean_loss, head, rows, targets, num_rows, is_last=True)[0])
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if (step + 1) % order.steps_per_epoch == 0:
                accuracies.append(accuracy_of(head, test, device=device))
                on_epoch(len(accuracies), accuracies[-1])
    return accuracies


def build_order(train: LabelledImages, protocol: BatchAndSchedule, *, seed: int) -> WholeEpochs:
    """Return the order of the training images: this rank's part of each batch."""
    return WholeEpochs(
        indices=train.indices,
        batch_size=protocol.batch_size,
        epochs=protocol.schedule.epochs,
        seed=seed,
        part=distributed.rank(),
        num_parts=distributed.world_size(),
    )


def mean_loss(network: nn.Module, inputs: Tensor, labels: Tensor, num_rows: int) -> tuple[Tensor, None]:
    """Return this rank's part of the mean cross-entropy over the `num_rows` rows of all ranks, and nothing more."""
    return F.cross_entropy(network(inputs), labels, reduction="sum") / num_rows, None


def build_training_loader(
    train: LabelledImages, order: WholeEpochs, *, device: torch.device, seed: int
) -> Iterable[PlainBatch]:
    """Return batches of randomly cropped and flipped images."""
    return build_loader(
        SingleViews(train.reader, size_px=train.view.size_px, seed=seed),
        order,
        num_workers=train.view.num_workers,
        pin_memory=device.type == "cuda",
    )


@torch.no_grad()
def accuracy_of(head: Callable[[Tensor], Tensor], features: Features, *, device: torch.device) -> float:
    """Return the share of rows (0..1) that `head` gives the largest score for their own class."""
    hits = 0
    for rows, labels in zip(features.rows.split(SCORE_CHUNK), features.labels.split(SCORE_CHUNK), strict=True):
        hits += count_hits(head(rows.to(device)).cpu(), labels)
    return hits / len(features.rows)
