"""Detection transfer as papers report it: a backbone fine-tuned several times, mean and spread of each metric."""

import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from mocokit.config.schema import DataConfig
from mocokit.data.loading.loader import choose_workers
from mocokit.detection.data_sets import DetectionSet
from mocokit.detection.detector import build_detector
from mocokit.detection.inference import average_precision, detect
from mocokit.detection.recipes import DetectionRecipe
from mocokit.detection.training import train_detector
from mocokit.engine.backbone_file import load_backbone
from mocokit.engine.checkpoint import write_text_atomically
from mocokit.engine.precision import pick_device
from mocokit.nets.backbones import build_backbone, build_seeded
from mocokit.randomness import Purpose, torch_seed

RANDOM = "random"
"""In place of a run: fresh weights, what pre-training has to beat."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One fine-tuning."""

    trial: int
    metrics: dict[str, float]
    """Percent."""
    train_metrics: dict[str, float]
    """The same on the training images; empty: not asked for."""
    last_loss: float
    """Mean over the last 20 iterations."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """What all trials share."""

    run: str
    """Run folder, backbone file, or "random"."""
    arch: str
    """Of random weights."""
    train: DetectionSet
    test: DetectionSet
    recipe: DetectionRecipe
    seed: int
    judge_training_images: bool = False
    device_name: str = "auto"
    num_workers: int = -1
    """Loader processes; 0: threads; -1: threads on a CPU, else the cores."""


def run_trials(
    plan: TrialPlan, *, num_trials: int, out: Path, on_iteration: Callable[[int, int, float], None] | None = None
) -> list[Trial]:
    """Fine-tune `num_trials` times; `out/trial_N.json` is written after each, and a finished one is not repeated.

    Args:
        plan: What to train.
        num_trials: Each has its own seed: heads, order, views and, for random weights, the backbone.
        out: Folder for settings, results and checkpoints; after a kill the same call continues.
        on_iteration: Called with trial, iterations done and loss.

    Raises:
        ValueError: No trial is asked for, or `out` holds trials of other settings.

    """
    if num_trials < 1:
        raise ValueError(f"trials={num_trials}: must be at least 1")
    _claim(out, plan)
    return [_run_trial(plan, number, out, on_iteration) for number in range(num_trials)]


def _claim(out: Path, plan: TrialPlan) -> None:
    """Write the settings of the trials down, or check that they are those of the folder."""
    settings = {
        "run": plan.run,
        "arch": plan.arch if plan.run == RANDOM else "",
        "recipe": asdict(plan.recipe),
        "seed": plan.seed,
        "classes": plan.train.class_names,
        "num_train_images": len(plan.train.images),
        "num_test_images": len(plan.test.images),
        "judge_training_images": plan.judge_training_images,
    }
    path = out / "settings.json"
    text = json.dumps(settings, indent=1) + "\n"
    begun = path.exists() and any(out.glob("trial_*"))
    if begun and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"out={out}: holds trials of other settings (see {path.name}); choose another folder")
    write_text_atomically(path, text)


def _run_trial(
    plan: TrialPlan, number: int, out: Path, on_iteration: Callable[[int, int, float], None] | None
) -> Trial:
    path = out / f"trial_{number}.json"
    if path.exists():
        return Trial(**json.loads(path.read_text(encoding="utf-8")))
    start = time.perf_counter()
    device = pick_device(plan.device_name, local_rank=0)
    num_workers = choose_workers(plan.num_workers, threads_suffice=device.type == "cpu")
    detector = initial_detector(plan, number).to(device)
    losses = train_detector(
        detector,
        plan.train,
        plan.recipe,
        device=device,
        seed=torch_seed(plan.seed, Purpose.DETECTION_TRIAL, number),
        num_workers=num_workers,
        checkpoints=out / f"trial_{number}",
        on_iteration=None if on_iteration is None else lambda done, loss: on_iteration(number, done, loss),
    )
    test, train = (
        average_precision(images, detect(detector, images, plan.recipe, device=device, num_workers=num_workers))
        if images is not None
        else {}
        for images in (plan.test, plan.train if plan.judge_training_images else None)
    )
    trial = Trial(
        trial=number,
        metrics=test,
        train_metrics=train,
        last_loss=statistics.fmean(losses[-20:]),
        seconds=time.perf_counter() - start,
    )
    text = json.dumps(asdict(trial), indent=1) + "\n"
    write_text_atomically(path, text)
    shutil.rmtree(out / f"trial_{number}", ignore_errors=True)  # its checkpoints
    return trial


def initial_detector(plan: TrialPlan, trial: int) -> GeneralizedRCNN:
    """The detector of one trial before training: the run's backbone, fresh heads."""

    def build() -> GeneralizedRCNN:
        """The detector, with weights from torch's generator where the run gives none."""
        if plan.run == RANDOM:
            backbone = build_backbone(plan.arch)
            mean = DataConfig.mean
            std = DataConfig.std
        else:
            loaded = load_backbone(plan.run)
            backbone = loaded.backbone
            mean = loaded.card.mean
            std = loaded.card.std
        return build_detector(
            backbone,
            num_classes=len(plan.train.class_names),
            neck=plan.recipe.neck,
            masks=plan.recipe.masks,
            mean=mean,
            std=std,
            anchor_sizes_px=plan.recipe.anchor_sizes_px,
            rpn_before_nms=plan.recipe.rpn_before_nms,
            rpn_after_nms=plan.recipe.rpn_after_nms,
            regions_per_image=plan.recipe.regions_per_image,
        )

    return build_seeded(build, torch_seed(plan.seed, Purpose.MODEL_INIT, trial))


def mean_and_std(trials: Sequence[Trial]) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation of each metric; the latter is NaN for a single trial."""
    return {
        name: (statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan)
        for name in trials[0].metrics
        for values in [[trial.metrics[name] for trial in trials]]
    }
