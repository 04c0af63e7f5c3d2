"""Settings of the published evaluation protocols, as values with their sources.

Learning rates are quoted at 256 images per step and scaled with the batch, so that a protocol means the same at any
batch size. `builtin_protocols.py` runs them.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from mocokit.engine.schedules import learning_rate

LEAST_STEPS_PER_EPOCH = 8
"""A small labelled set gets a smaller batch instead of fewer steps; 1 % of ImageNet keeps every published batch."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Number of epochs, and decay of the learning rate."""

    epochs: int
    cos: bool
    """True: half a cosine, from the peak to 0; False: a drop at each milestone."""
    by: Literal["epoch", "step"] = "epoch"
    """Interval at which the rate is updated."""
    milestones: tuple[float, ...] = ()
    """Epochs at which the rate drops."""
    drop: float = 0.1
    """Factor of each drop."""

    def scaled(self, factor: float) -> "Schedule":
        """Return a schedule that is `factor` times as long, with its milestones moved in proportion."""
        epochs = max(1, round(self.epochs * factor))
        return replace(self, epochs=epochs, milestones=tuple(m * epochs / self.epochs for m in self.milestones))

    def lr(self, step: int, *, steps_per_epoch: int, peak_lr: float) -> float:
        """Return the learning rate of one step."""
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
    """Return `wanted`, halved until an epoch has LEAST_STEPS_PER_EPOCH steps, but at least 2, which BatchNorm needs."""
    while wanted > 2 and num_images < wanted * LEAST_STEPS_PER_EPOCH:
        wanted //= 2
    return wanted


@dataclass(frozen=True, kw_only=True)
class BatchAndSchedule:
    """Settings that depend on the number of labelled images and on the length that the user asks for."""

    batch_size: int
    schedule: Schedule

    def fitted(self, num_images: int, *, epochs_scale: float = 1.0) -> Self:
        """Return the settings for `num_images` labelled images, with a schedule `epochs_scale` times as long."""
        batch_size = batch_size_for(num_images, self.batch_size)
        return replace(self, batch_size=batch_size, schedule=self.schedule.scaled(epochs_scale))


@dataclass(frozen=True, kw_only=True)
class LinearProtocol(BatchAndSchedule):
    """Settings of a linear classifier on a frozen backbone: SGD with momentum 0.9, on random crops and flips."""

    name: str
    lr_at_256: float
    """Peak learning rate at 256 images per step."""
    weight_decay: float = 0.0
    nesterov: bool = False
    init_std: float | None = 0.01
    """Weights start as N(0, init_std), the bias as 0; None: torch's own initial weights."""

    @property
    def lr(self) -> float:
        """Peak learning rate at `batch_size`."""
        return self.lr_at_256 * self.batch_size / 256

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
class FineTuneProtocol(BatchAndSchedule):
    """Settings of fine-tuning the backbone with a new classifier: momentum 0.9, on random crops and flips.

    If there are several rates or multipliers, each pair is tried, and a held-out part of the labelled images chooses.
    """

    name: str
    optimizer: Literal["sgd", "lars"]
    rates: tuple[float, ...]
    """Peak learning rates of the backbone to try, in the unit that `scales_with` tells."""
    scales_with: Literal["nothing", "sqrt"]
    """nothing: rates hold at any batch; sqrt: rates are for a batch of 1 and grow with the root of the batch."""
    head_multipliers: tuple[float, ...] = (1.0,)
    """Learning rates of the classifier to try, over that of the backbone."""
    choose_on: int | None = None
    """Largest number of labelled images used to choose the rates, held-out ones included; None: all."""
    weight_decay: float

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Pairs (learning rate of the backbone at `batch_size`, multiplier of the classifier) to try."""
        factor = math.sqrt(self.batch_size) if self.scales_with == "sqrt" else 1.0
        return [(rate * factor, multiplier) for rate in self.rates for multiplier in self.head_multipliers]

    def id_for(self, part: str) -> str:
        """Return the id of a result on a part of the labels, such as "1%"."""
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
# mmselfsup reports the pair that is best on the validation images; here a held-out part of the labelled images chooses.
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

# Ours: with many labels, trying nine pairs on all of them costs nine times the final training.
LR_GRID_6000 = replace(LR_GRID, name="lr-grid-6000", choose_on=6000)

FINETUNE_PROTOCOLS = {protocol.name: protocol for protocol in (SIMCLR_FINETUNE, LR_GRID, LR_GRID_6000)}


@dataclass(frozen=True, kw_only=True)
class FastLinearProtocol(BatchAndSchedule):
    """Settings of our fast linear evaluation: one classifier per (rate, weight decay), trained together on features.

    Features are standardised and scaled to rows of length 1 on average, so that one grid of rates suits any backbone.
    A held-out part of the training images chooses the pair, which is then trained on all of them.
    """

    rates: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    weight_decays: tuple[float, ...] = (0.0, 1e-6, 1e-5, 1e-4)
    batch_size: int = 256
    held_out_share: float = 0.1
    """Share of the training images that chooses the pair."""
    schedule: Schedule = Schedule(epochs=30, cos=True, by="step")

    def __str__(self) -> str:
        return f"linear/fast@standardised,b{self.batch_size},e{self.schedule.epochs}"


FAST_LINEAR = FastLinearProtocol()
