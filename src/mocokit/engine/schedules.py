"""Schedules of the learning rate: pure functions of the step."""

import math
from collections.abc import Sequence


def cosine_lr(progress: float, *, peak_lr: float) -> float:
    """Half cosine from `peak_lr` at progress 0 to 0 at progress 1 (MoCo v2 sec. 3, column "cos")."""
    return 0.5 * peak_lr * (1.0 + math.cos(math.pi * progress))


def step_lr(epoch: float, *, peak_lr: float, milestones: Sequence[float], drop: float = 0.1) -> float:
    """`peak_lr`, times `drop` from each milestone epoch on (MoCo v1: 0.1 at 120 and 160 of 200)."""
    return peak_lr * drop ** sum(epoch >= milestone for milestone in milestones)


def learning_rate(
    step: int,
    *,
    steps_per_epoch: int,
    epochs: int,
    peak_lr: float,
    schedule: str,
    milestones: Sequence[float],
    by: str,
    warmup_epochs: float = 0.0,
    drop: float = 0.1,
) -> float:
    """Learning rate of one optimizer step.

    Args:
        step: Steps done before this one.
        steps_per_epoch: Steps in an epoch.
        epochs: Length of the schedule.
        peak_lr: The rate at the start, or after the warm-up.
        schedule: "cosine", "step" or "constant".
        milestones: Epochs at which the rate drops.
        by: "epoch": the cosine is constant within an epoch, as officially; "step": smooth. A milestone that is no
            whole epoch, of a schedule made shorter, lies within one.
        warmup_epochs: Linear rise from 0 over this many epochs (0 in the MoCo papers).
        drop: Factor at each milestone.

    """
    epoch = step / steps_per_epoch
    if epoch < warmup_epochs:
        return peak_lr * (step + 1) / (warmup_epochs * steps_per_epoch)
    if schedule == "constant":
        return peak_lr
    if schedule == "cosine":
        done = math.floor(epoch) if by == "epoch" else epoch
        progress = (done - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
        return cosine_lr(max(0.0, progress), peak_lr=peak_lr)
    return step_lr(epoch, peak_lr=peak_lr, milestones=milestones, drop=drop)
