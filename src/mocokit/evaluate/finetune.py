"""Fine-tune a backbone together with a new classifier, on a part of the labelled images or on all of them.

Shapes: n images of a batch, M images, S pixels a side, L classes.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mocokit import distributed
from mocokit.distributed.gradients import gradient_sum
from mocokit.engine.lars import Lars
from mocokit.engine.precision import Precision
from mocokit.evaluate.fast_linear import best_pair
from mocokit.evaluate.features import LabelledImages, count_hits, embed_with
from mocokit.evaluate.linear import build_classifier, build_order, build_training_loader, mean_loss
from mocokit.evaluate.protocols import FineTuneProtocol
from mocokit.evaluate.rank_shares import count_batch, extract_share, on_all_ranks
from mocokit.evaluate.splits import balanced_subset, hold_out
from mocokit.nets.backbones import feature_dim
from mocokit.nets.grouped_batchnorm import batchnorm_of_ranks, convert_batchnorm

CHOOSING_SHARE = 0.2
"""Share of the labelled images that is held out to choose the learning rates."""


@dataclass(frozen=True, kw_only=True)
class FineTuneResult:
    """Accuracy of a fine-tuned network, and the learning rates it was trained with."""

    accuracy: float
    """On the test images after the last epoch, 0..1."""
    lr: float
    """Peak learning rate of the backbone."""
    head_multiplier: float
    """Learning rate of the classifier over that of the backbone."""


def fine_tune_and_test(
    backbone: nn.Module,
    pixels: nn.Module,
    labelled: LabelledImages,
    test: LabelledImages,
    protocol: FineTuneProtocol,
    *,
    device: torch.device,
    precision: Precision,
    seed: int,
    say: Callable[[str], None] = lambda _text: None,
) -> FineTuneResult:
    """Fine-tune a copy of `backbone` and test it once.

    If the protocol has several pairs of learning rates, each pair is trained on four fifths of the labelled images (or
    of the `choose_on` images that the protocol limits the choice to) and scored on the held-out fifth. The best pair is
    then trained on all labelled images. Test images have no influence on the choice.

    Args:
        backbone: Weights to start from; not changed.
        pixels: Normalises uint8 pixels for the backbone.
        labelled: Images to train on.
        test: Images to test on.
        protocol: Settings, already fitted to the number of labelled images.
        device: Device to compute on.
        precision: Number format of forward and backward passes.
        seed: Seed of the crops, the order, the classifier's initial weights and the held-out part.
        say: Called with a line of progress.

    Raises:
        ValueError: The protocol has several pairs, but no class has two labelled images.

    """

    def train(images: LabelledImages, lr: float, multiplier: float) -> nn.Module:
        """Train a network with these rates."""
        return fine_tune(
            backbone,
            pixels,
            images,
            protocol,
            lr=lr,
            head_multiplier=multiplier,
            device=device,
            precision=precision,
            seed=seed,
        )

    pairs = protocol.pairs
    chosen = pairs[0]
    if len(pairs) > 1:
        rest, held = hold_out(_images_for_choosing(labelled, protocol, seed=seed), CHOOSING_SHARE, seed=seed)
        scores: list[tuple[float, float]] = []  # (accuracy, loss) of each pair on the held-out part
        for number, (lr, multiplier) in enumerate(pairs, start=1):
            say(f"choosing a rate, {number} of {len(pairs)}: lr {lr:g}, head x{multiplier:g}")
            scores.append(score_network(train(rest, lr, multiplier), held, device=device, precision=precision))
        chosen = best_pair(pairs, *zip(*scores, strict=True))
    say(f"training on all {len(labelled.indices):,} labelled images: lr {chosen[0]:g}, head x{chosen[1]:g}")
    accuracy, _ = score_network(train(labelled, *chosen), test, device=device, precision=precision)
    return FineTuneResult(accuracy=accuracy, lr=chosen[0], head_multiplier=chosen[1])


def _images_for_choosing(labelled: LabelledImages, protocol: FineTuneProtocol, *, seed: int) -> LabelledImages:
    if protocol.choose_on is None or protocol.choose_on >= len(labelled.indices):
        return labelled
    return labelled.only(balanced_subset(labelled, protocol.choose_on, seed=seed))


def fine_tune(
    backbone: nn.Module,
    pixels: nn.Module,
    labelled: LabelledImages,
    protocol: FineTuneProtocol,
    *,
    lr: float,
    head_multiplier: float,
    device: torch.device,
    precision: Precision,
    seed: int,
) -> nn.Module:
    """Fine-tune a copy of `backbone` with a new classifier, and return it in eval mode.

    All layers are trained, and BatchNorm is in train mode. The network maps (n, 3, S, S) uint8 pixels to (n, L) scores.
    Each rank computes its part of every batch; BatchNorm's statistics are those of the whole batch, and gradients are
    summed over ranks. `fine_tune_and_test` explains the arguments.
    """
    schedule = protocol.schedule
    order = build_order(labelled, protocol, seed=seed)
    head = build_classifier(feature_dim(backbone), len(labelled.class_names), init_std=0.01, seed=seed)
    trained = copy.deepcopy(backbone)
    if distributed.world_size() > 1:
        trained = convert_batchnorm(trained)
    network = nn.Sequential(pixels, trained, head).to(device).train()
    optimizer = build_optimizer(network[1], head, protocol, lr=lr, head_multiplier=head_multiplier)
    gradients = gradient_sum(network)
    labels = torch.tensor(labelled.labels)
    for step, (images, indices, bad) in enumerate(build_training_loader(labelled, order, device=device, seed=seed)):
        counts = count_batch(labelled.tally, len(indices), bad)
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr(step, steps_per_epoch=order.steps_per_epoch, peak_lr=group["peak_lr"])
        if sum(counts) < 2:  # BatchNorm needs two images; happens only if the others of the batch can't be read
            continue
        inputs = images.to(device, non_blocking=True)
        targets = labels[indices].to(device)
        with precision.autocast(), batchnorm_of_ranks(network, counts):
            loss, _ = gradients.forward(mean_loss, network, inputs, targets, sum(counts), is_last=True)
        gradients.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return network.eval()


def build_optimizer(
    backbone: nn.Module, head: nn.Module, protocol: FineTuneProtocol, *, lr: float, head_multiplier: float
) -> torch.optim.Optimizer:
    """Return SGD or SimCLR's LARS; each parameter group carries its own `peak_lr`, which the schedule scales."""
    optimizer: torch.optim.Optimizer
    if protocol.optimizer == "lars":
        optimizer = Lars(
            [*backbone.parameters(), *head.parameters()],
            lr=lr,
            momentum=0.9,
            weight_decay=protocol.weight_decay,
            trust_coefficient=0.001,
            lr_in_momentum=True,
        )
        for group in optimizer.param_groups:
            group["peak_lr"] = lr
        return optimizer
    groups = [
        {"params": list(part.parameters()), "peak_lr": lr * multiplier}
        for part, multiplier in ((backbone, 1.0), (head, head_multiplier))
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=protocol.weight_decay)


def score_network(
    network: nn.Module, images: LabelledImages, *, device: torch.device, precision: Precision
) -> tuple[float, float]:
    """Return the accuracy (0..1) and the mean cross-entropy of a trained network on images without augmentation."""
    share = extract_share(embed_with(network, nn.Identity(), precision), images, device=device)
    scores = on_all_ranks(share)  # rows: (M, L)
    accuracy = count_hits(scores.rows, scores.labels) / len(scores.labels)
    return accuracy, float(F.cross_entropy(scores.rows, scores.labels))
