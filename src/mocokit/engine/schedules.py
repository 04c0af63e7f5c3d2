"""Schedules of the learning rate, as pure functions of the training progress."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mocokit.settings import choose


class Progress(NamedTuple):
    """Position in a schedule, and the parameters of the step schedule."""

    epoch: float
    """Epochs done, or begun if they count from 1, warm-up included; fractional within an epoch."""
    fraction: float
    """Done fraction of the epochs after the warm-up, 0 to 1."""
    milestones: Sequence[float]
    drop: float


SCHEDULES: dict[str, Callable[[Progress], float]] = {
    "cosine": lambda at: 0.5 * (1.0 + math.cos(math.pi * at.fraction)),  # MoCo v2 sec. 3, column "cos"
    "step": lambda at: at.drop ** sum(at.epoch >= milestone for milestone in at.milestones),  # MoCo v1
    "constant": lambda at: 1.0,
}
"""Learning rate after the warm-up, as a factor of the peak rate."""


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
    warmup_from: float = 0.0,
    end: str = "after-last",
    drop: float = 0.1,
) -> float:
    """Return the learning rate of one optimizer step.

    Args:
        step: Steps done before this one.
        steps_per_epoch: Steps in an epoch.
        epochs: Length of the schedule, warm-up included.
        peak_lr: Rate at the end of the warm-up, or at the start if there is no warm-up.
        schedule: "cosine", "step" (times `drop` at each milestone; MoCo v1: 0.1 at epochs 120 and 160 of 200) or
            "constant".
        milestones: Epochs at which the step schedule drops the rate. They may be fractional: shortening a schedule
            scales them.
        by: "epoch" keeps the cosine constant within an epoch, as the official code does; "step" updates it each step.
        warmup_epochs: Length of the linear rise to `peak_lr` (0 in the MoCo v1 and v2 papers). The rate of step s of
            W is s / W of it, as in MoCo v3 and SimCLR: 0 in the first step, and the peak in step W.
        warmup_from: Rate of the first step of the warm-up, as a share of `peak_lr`.
        end: "after-last" counts steps and epochs from 0, so that a cosine reaches 0 after the last one. "last" counts
            from 1, as Fast-MoCo and the official CIFAR notebook do: the peak is at the last step of the warm-up, and a
            cosine is 0 in the last step or epoch.
        drop: Factor at each milestone.

    Raises:
        ValueError: Unknown schedule.

    """
    factor = choose("optim.schedule", schedule, SCHEDULES)
    first = choose("optim.lr_end", end, {"after-last": 0, "last": 1})
    warmup_steps = warmup_epochs * steps_per_epoch
    if step + first < warmup_steps:
        return peak_lr * (warmup_from + (1 - warmup_from) * step / (warmup_steps - first))
    epoch = step / steps_per_epoch + (first if by == "epoch" else first / steps_per_epoch)
    done = math.floor(epoch) if by == "epoch" else epoch
    # 1e-9: a run that is all warm-up has no epochs left to divide by. max: by epoch, `done` may be before the
    # (fractional) end of the warm-up.
    fraction = max(0.0, (done - warmup_epochs) / max(epochs - warmup_epochs, 1e-9))
    return peak_lr * factor(Progress(epoch, fraction, milestones, drop))
