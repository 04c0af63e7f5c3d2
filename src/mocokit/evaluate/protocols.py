"""The published ways to judge a backbone with labels, as values with their sources. A result carries its protocol's id.

Rates are quoted at 256 images a step and scaled with the batch, so that a protocol means the same at any batch size.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from mocokit.engine.schedules import learning_rate

LEAST_STEPS_PER_EPOCH = 8
"""A small labelled set gets a smaller batch rather than fewer steps; ImageNet's 1 % keeps every published batch."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length, and how the rate falls."""

    epochs: int
    cos: bool
    by: Literal["epoch", "step"] = "epoch"
    milestones: tuple[float, ...] = ()
    drop: float = 0.1

    def scaled(self, factor: float) -> "Schedule":
        """`factor` times as long; milestones keep their place in it."""
        epochs = max(1, round(self.epochs * factor))
        return replace(self, epochs=epochs, milestones=tuple(m * epochs / self.epochs for m in self.milestones))

    def lr(self, step: int, *, steps_per_epoch: int, peak_lr: float) -> float:
        """Rate of one step."""
        return learning_rate(
            step,
            steps_per_epoch=steps_per_epoch,
            epochs=self.epochs,
            peak_lr=peak_lr,
            schedule="cosine" if self.cos else "step",
            milestones=self.milestones,
            by=self.by,
            drop=self.drop,
        )


def batch_size_for(num_images: int, wanted: int) -> int:
    """`wanted`, halved until an epoch of `num_images` has LEAST_STEPS_PER_EPOCH steps (at least 2 images a step)."""
    while wanted > 2 and num_images < wanted * LEAST_STEPS_PER_EPOCH:
        wanted //= 2
    return wanted


@dataclass(frozen=True, kw_only=True)
class LinearProtocol:
    """A linear classifier on the frozen backbone, SGD with momentum 0.9, on random crops and flips."""

    name: str
    lr_at_256: float
    batch_size: int
    weight_decay: float = 0.0
    nesterov: bool = False
    init_std: float | None = 0.01
    """Weights ~ N(0, this), bias 0; None: torch's default for a linear layer."""
    schedule: Schedule

    @property
    def lr(self) -> float:
        """Peak rate at `batch_size`."""
        return self.lr_at_256 * self.batch_size / 256

    def fitted(self, num_images: int, *, epochs_scale: float = 1.0) -> "LinearProtocol":
        """For that many training images, and a longer or shorter schedule."""
        batch_size = batch_size_for(num_images, self.batch_size)
        return replace(self, batch_size=batch_size, schedule=self.schedule.scaled(epochs_scale))

    def __str__(self) -> str:
        return f"linear/{self.name}@b{self.batch_size},e{self.schedule.epochs}"


# facebookresearch/moco main_lincls.py and README: lr 30, batch 256, 100 epochs, x0.1 at 60 and 80, weight decay 0.
MOCO = LinearProtocol(
    name="moco", lr_at_256=30.0, batch_size=256, schedule=Schedule(epochs=100, cos=False, milestones=(60, 80))
)
# facebookresearch/moco-v3 main_lincls.py, CONFIG.md: lr 0.1 (ResNet-50) and 3 (ViT) per 256 images at batch 1024.
MOCO_V3_R50 = LinearProtocol(name="moco-v3-r50", lr_at_256=0.1, batch_size=1024, schedule=Schedule(epochs=90, cos=True))
MOCO_V3_VIT = replace(MOCO_V3_R50, name="moco-v3-vit", lr_at_256=3.0)
# google-research/simclr README: lr 0.1 per 256 images at batch 4096, weight decay 1e-6, 90 epochs; SimCLR app. B.6.
SIMCLR = LinearProtocol(
    name="simclr",
    lr_at_256=0.1,
    batch_size=4096,
    weight_decay=1e-6,
    nesterov=True,
    schedule=Schedule(epochs=90, cos=True, by="step"),
)
# lightly-ai/lightly utils/benchmarking/linear_classifier.py and its ImageNet benchmarks: lr 0.1 per 256 images.
LIGHTLY = LinearProtocol(
    name="lightly", lr_at_256=0.1, batch_size=256, init_std=None, schedule=Schedule(epochs=90, cos=True, by="step")
)

LINEAR_PROTOCOLS = {protocol.name: protocol for protocol in (MOCO, MOCO_V3_R50, MOCO_V3_VIT, SIMCLR, LIGHTLY)}


@dataclass(frozen=True, kw_only=True)
class FineTuneProtocol:
    """Backbone and a new classifier trained together, momentum 0.9, on random crops and flips.

    With several rates or multipliers each pair is tried, and chosen by a held-out part of the labelled images.
    """

    name: str
    optimizer: Literal["sgd", "lars"]
    rates: tuple[float, ...]
    """Of the backbone; as `scales_with` says."""
    scales_with: Literal["nothing", "sqrt"]
    """sqrt: the rate is for one image a step and grows with the root of the batch."""
    head_multipliers: tuple[float, ...] = (1.0,)
    """Rate of the classifier over that of the backbone."""
    choose_on: int | None = None
    """Most labelled images that choose the rates, those that train and those that judge together; None: all."""
    batch_size: int
    weight_decay: float
    schedule: Schedule

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """(backbone rate at `batch_size`, head multiplier) to try."""
        factor = math.sqrt(self.batch_size) if self.scales_with == "sqrt" else 1.0
        return [(rate * factor, multiplier) for rate in self.rates for multiplier in self.head_multipliers]

    def fitted(self, num_images: int, *, epochs_scale: float = 1.0) -> "FineTuneProtocol":
        """For that many labelled images, and a longer or shorter schedule."""
        batch_size = batch_size_for(num_images, self.batch_size)
        return replace(self, batch_size=batch_size, schedule=self.schedule.scaled(epochs_scale))

    def id_for(self, part: str) -> str:
        """The protocol's id on a part of the labels, such as "1%"."""
        return f"finetune/{self.name}@{part},b{self.batch_size},e{self.schedule.epochs}"


# SimCLR v2's 1 % run of google-research/simclr: LARS, 0.005 * sqrt(1024) = 0.16, weight decay 0, 60 epochs, no warm-up.
SIMCLR_FINETUNE = FineTuneProtocol(
    name="simclr",
    optimizer="lars",
    rates=(0.005,),
    scales_with="sqrt",
    batch_size=1024,
    weight_decay=0.0,
    schedule=Schedule(epochs=60, cos=True, by="step"),
)
# open-mmlab/mmselfsup, semi-supervised ImageNet benchmark: 9 pairs, weight decay 5e-4, 20 epochs, x0.2 at 12 and 16.
# It reports the pair that is best on the validation images; here a held-out part of the labelled ones chooses.
LR_GRID = FineTuneProtocol(
    name="lr-grid",
    optimizer="sgd",
    rates=(1e-1, 1e-2, 1e-3),
    scales_with="nothing",
    head_multipliers=(1, 10, 100),
    batch_size=256,
    weight_decay=5e-4,
    schedule=Schedule(epochs=20, cos=False, milestones=(12, 16), drop=0.2),
)

# Ours: on many labels nine trainings on all of them cost nine times the one that counts.
LR_GRID_6000 = replace(LR_GRID, name="lr-grid-6000", choose_on=6000)

FINETUNE_PROTOCOLS = {protocol.name: protocol for protocol in (SIMCLR_FINETUNE, LR_GRID, LR_GRID_6000)}


@dataclass(frozen=True, kw_only=True)
class FastLinearProtocol:
    """Linear classifiers on cached features, one for each rate and weight decay, all trained in the same passes.

    Features are standardised and scaled to rows of length 1 on average, so that one grid of rates suits any backbone.
    The pair is chosen on a held-out part of the training images and trained again on all of them. Ours.
    """

    rates: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    weight_decays: tuple[float, ...] = (0.0, 1e-6, 1e-5, 1e-4)
    batch_size: int = 256
    held_out_share: float = 0.1
    schedule: Schedule = Schedule(epochs=30, cos=True, by="step")

    def fitted(self, num_images: int, *, epochs_scale: float = 1.0) -> "FastLinearProtocol":
        """For that many training images, and a longer or shorter schedule."""
        batch_size = batch_size_for(num_images, self.batch_size)
        return replace(self, batch_size=batch_size, schedule=self.schedule.scaled(epochs_scale))

    def __str__(self) -> str:
        return f"linear/fast@standardised,b{self.batch_size},e{self.schedule.epochs}"


FAST_LINEAR = FastLinearProtocol()
