"""Schedules and sizes that the papers fine-tune detectors with, as values with their sources.

The numbers are those of facebookresearch/moco `detection/configs`, completed by Detectron2's defaults
(`Base-RCNN-C4.yaml`, `Base-RCNN-FPN.yaml`, `config/defaults.py`).
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Literal

from mocokit.settings import require


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe:
    """Settings of fine-tuning a detector from a backbone."""

    name: str
    neck: Literal["c4", "fpn"]
    """c4: proposals from layer3, and layer4 as the head of each region; fpn: a feature pyramid."""
    masks: bool
    """True: Mask R-CNN, which also learns masks."""
    iterations: int
    milestones: tuple[int, ...]
    """Iterations at which the learning rate drops tenfold."""
    warmup_iterations: int
    warmup_factor: float = 1e-3
    """First learning rate of the linear warm-up, as a share of `lr`."""
    batch_size: int = 16
    lr: float = 0.02
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    """Of all parameters except those of normalisation layers, which get none."""
    train_short_sides_px: tuple[int, ...]
    test_short_side_px: int = 800
    max_long_side_px: int = 1333
    anchor_sizes_px: tuple[float, ...] = (32, 64, 128, 256, 512)
    rpn_before_nms: tuple[int, int]
    """Proposals kept before non-maximum suppression, (in training, in testing); per level for fpn."""
    rpn_after_nms: tuple[int, int]
    """Proposals kept after it, likewise."""
    regions_per_image: int = 512
    """Proposals per image sampled for the losses of the head; they are most of the work."""
    precise_bn_iterations: int = 200
    """Batches that re-estimate the running BatchNorm statistics after training."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch", self.batch_size, "must be at least 1")
        require(self.iterations >= 1, "iterations", self.iterations, "must be at least 1")

    def rescaled(self, batch_size: int) -> "DetectionRecipe":
        """Return the recipe at another batch size: `lr` in proportion, and as many images in total.

        moco issue #11: "halve batch and lr, double the steps"; Detectron2's `auto_scale_workers` scales the warm-up
        too.
        """
        require(batch_size >= 1, "batch", batch_size, "must be at least 1")
        longer = self.batch_size / batch_size
        return replace(
            self,
            batch_size=batch_size,
            lr=self.lr / longer,
            iterations=round(self.iterations * longer),
            milestones=tuple(round(milestone * longer) for milestone in self.milestones),
            warmup_iterations=round(self.warmup_iterations * longer),
        )

    def shortened(self, iterations: int) -> "DetectionRecipe":
        """Return the recipe with another number of iterations, and milestones in proportion.

        Warm-up takes at most a tenth of the iterations; precise BatchNorm takes at most as many batches as training.
        """
        share = iterations / self.iterations
        return replace(
            self,
            iterations=iterations,
            milestones=tuple(round(milestone * share) for milestone in self.milestones),
            warmup_iterations=min(self.warmup_iterations, iterations // 10),
            precise_bn_iterations=min(self.precise_bn_iterations, iterations),
        )

    def at_short_side(self, short_side_px: int) -> "DetectionRecipe":
        """Return the recipe at another scale, with image sizes and anchors in proportion to the test short side."""
        require(short_side_px >= 32, "short_side", short_side_px, "must be at least 32 pixels")
        scale = short_side_px / self.test_short_side_px
        return replace(
            self,
            train_short_sides_px=tuple(round(side * scale) for side in self.train_short_sides_px),
            test_short_side_px=short_side_px,
            max_long_side_px=round(self.max_long_side_px * scale),
            anchor_sizes_px=tuple(size * scale for size in self.anchor_sizes_px),
        )

    def lr_of(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0 (Detectron2's WarmupMultiStepLR)."""
        lr = self.lr * 0.1 ** bisect_right(self.milestones, iteration)
        if iteration >= self.warmup_iterations:
            return lr
        progress = iteration / self.warmup_iterations
        return lr * (self.warmup_factor * (1 - progress) + progress)


# pascal_voc_R_50_C4_24k.yaml; moco detection README: VOC07 test AP50/AP/AP75 of five runs 82.4/57.0/63.6 (v2, 200
# epochs), 82.5/57.4/64.0 (v2, 800 epochs), 81.3/53.5/58.8 (supervised).
VOC_C4_24K = DetectionRecipe(
    name="voc-c4-24k",
    neck="c4",
    masks=False,
    iterations=24_000,
    milestones=(18_000, 22_000),
    warmup_iterations=100,
    train_short_sides_px=tuple(range(480, 801, 32)),
    rpn_before_nms=(12_000, 6000),
    rpn_after_nms=(2000, 1000),
)

# coco_R_50_C4_2x.yaml
COCO_C4_2X = DetectionRecipe(
    name="coco-c4-2x",
    neck="c4",
    masks=True,
    iterations=180_000,
    milestones=(120_000, 160_000),
    warmup_iterations=1000,
    train_short_sides_px=tuple(range(640, 801, 32)),
    rpn_before_nms=(12_000, 6000),
    rpn_after_nms=(2000, 1000),
)

# There is no official config. The maintainer describes it in moco issues #34 (SyncBN on backbone and FPN, heads as in
# Detectron2) and #39 (1x: 90k iterations, steps at 60k and 80k). mmselfsup measures 40.2 box, 36.1 mask AP (v2, 200).
COCO_FPN_1X = DetectionRecipe(
    name="coco-fpn-1x",
    neck="fpn",
    masks=True,
    iterations=90_000,
    milestones=(60_000, 80_000),
    warmup_iterations=1000,
    train_short_sides_px=tuple(range(640, 801, 32)),
    rpn_before_nms=(2000, 1000),
    rpn_after_nms=(1000, 1000),
)

RECIPES = {recipe.name: recipe for recipe in (VOC_C4_24K, COCO_C4_2X, COCO_FPN_1X)}
