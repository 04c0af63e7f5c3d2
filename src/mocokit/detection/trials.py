"""Fine-tune detectors from one backbone several times, and report mean and spread, as the papers do."""

import json
import logging
import math
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from mocokit.data.loading.loader import choose_workers
from mocokit.data.sources.identity import DataIdentity
from mocokit.data.sources.sources import FileSource
from mocokit.data.value_range import measure_ranges
from mocokit.detection.batches import MAX_IMAGE_PX
from mocokit.detection.checks import annotations_digest, identify_images, require_image_files, warn_of_flaws
from mocokit.detection.data_sets import DetectionSet
from mocokit.detection.detector import build_detector
from mocokit.detection.inference import average_precision, detect
from mocokit.detection.recipes import DetectionRecipe
from mocokit.detection.training import train_detector
from mocokit.engine.agreement import weights_digest
from mocokit.engine.backbone_file import load_backbone
from mocokit.engine.checkpoint import write_text_atomically
from mocokit.engine.device import pick_device
from mocokit.nets.backbones import build_backbone, build_seeded
from mocokit.nets.pixels import IMAGENET_MEAN, IMAGENET_STD
from mocokit.randomness import Purpose, torch_seed

LOGGER = logging.getLogger("mocokit")

RANDOM = "random"
"""Given instead of a run: random weights, the baseline."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Result of one fine-tuning."""

    trial: int
    """Number of the trial, from 0 on."""
    metrics: dict[str, float]
    """Average precisions on the test images, in percent."""
    train_metrics: dict[str, float]
    """The same on the training images; empty: not asked for."""
    last_loss: float
    """Mean training loss over the last 20 iterations."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """Settings that all trials share."""

    run: str
    """Run folder, backbone file, or "random"."""
    arch: str
    """Architecture of random weights."""
    train: DetectionSet
    test: DetectionSet
    recipe: DetectionRecipe
    seed: int
    """Each trial derives its own seed from this one."""
    judge_training_images: bool = False
    """Also measure the average precision on the training images."""
    device_name: str = "auto"
    num_workers: int = -1
    """Loader processes; 0: threads; -1: threads on a CPU, else the cores."""


def run_trials(
    plan: TrialPlan, *, num_trials: int, out: Path, on_iteration: Callable[[int, int, float], None] | None = None
) -> list[Trial]:
    """Fine-tune `num_trials` times; each writes `out/trial_N.json`, and a finished trial is not repeated.

    Args:
        plan: Settings of the trials.
        num_trials: Number of trials. Each has its own seed for heads, order, views and, if random, the backbone.
        out: Folder for settings, results and checkpoints; after a kill the same call continues.
        on_iteration: Called with the trial, the number of iterations done and the loss.

    Raises:
        ValueError: `num_trials` is below 1, an image file is missing or unfit, or `out` holds trials of other
            settings, weights, images or annotations.

    """
    if num_trials < 1:
        raise ValueError(f"trials={num_trials}: must be at least 1")
    for images in (plan.train, plan.test):
        require_image_files(images)
    identities = identify_images(plan.train), identify_images(plan.test)
    warn_of_flaws(plan.train, plan.test, identities)
    _save_or_check_settings(out, plan, identities)
    plan = _with_value_ranges(plan)
    return [_run_trial(plan, number, out, on_iteration) for number in range(num_trials)]


def _with_value_ranges(plan: TrialPlan) -> TrialPlan:
    """Return the plan with the value ranges of the run's backbone; those it lacks are measured on training images."""
    known = {} if plan.run == RANDOM else load_backbone(plan.run).card.value_ranges
    files = FileSource(Path(), tuple(str(image.path) for image in plan.train.images), None, ())
    measured = measure_ranges(files, max_image_px=MAX_IMAGE_PX, seed=0, known=known)
    for line in measured.lines_beside(known):
        LOGGER.warning(line)
    train = replace(plan.train, value_ranges=measured.ranges)
    return replace(plan, train=train, test=replace(plan.test, value_ranges=measured.ranges))


def _save_or_check_settings(out: Path, plan: TrialPlan, identities: tuple[DataIdentity, DataIdentity]) -> None:
    """Write the settings into `out`; if it has trials already, raise ValueError unless their settings are the same.

    Older versions recorded neither weights nor identities: their trials are taken for the same, with a warning.
    """
    settings = {
        "run": plan.run,
        "weights": "" if plan.run == RANDOM else weights_digest(load_backbone(plan.run).backbone),
        "arch": plan.arch if plan.run == RANDOM else "",
        "recipe": asdict(plan.recipe),
        "seed": plan.seed,
        "classes": plan.train.class_names,
        "num_train_images": len(plan.train.images),
        "num_test_images": len(plan.test.images),
        "judge_training_images": plan.judge_training_images,
        "train_images": identities[0].digest,
        "test_images": identities[1].digest,
        "train_annotations": annotations_digest(plan.train),
        "test_annotations": annotations_digest(plan.test),
    }
    path = out / "settings.json"
    text = json.dumps(settings, indent=1) + "\n"
    if path.exists() and any(out.glob("trial_*")):
        before = json.loads(path.read_text(encoding="utf-8"))
        now = json.loads(text)  # tuples become lists
        # The weights themselves are compared, so the run may have moved. Files of older versions have only its path.
        moves = "run" if "weights" in before else "weights"
        differing = [name for name in before.keys() & now.keys() if name != moves and before[name] != now[name]]
        if differing:
            raise ValueError(
                f"out={out}: holds trials of other settings (see {path.name}): {', '.join(sorted(differing))}; choose "
                "another folder"
            )
        if "weights" not in before:
            LOGGER.warning("%s: an older mocokit made these trials, and did not record their weights and images", out)
        return
    write_text_atomically(path, text)


def _run_trial(
    plan: TrialPlan, number: int, out: Path, on_iteration: Callable[[int, int, float], None] | None
) -> Trial:
    """Return the saved result of a finished trial, or run it and save its result."""
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
    shutil.rmtree(out / f"trial_{number}", ignore_errors=True)  # checkpoints of the trial
    return trial


def initial_detector(plan: TrialPlan, trial: int) -> GeneralizedRCNN:
    """Return the detector of one trial before training: the run's backbone with randomly initialised heads."""

    def build() -> GeneralizedRCNN:
        """Build the detector; torch's generator draws all weights that the run does not give."""
        if plan.run == RANDOM:
            backbone = build_backbone(plan.arch)
            mean: tuple[float, ...] = IMAGENET_MEAN
            std: tuple[float, ...] = IMAGENET_STD
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
    """Return the mean and the sample standard deviation (NaN for a single trial) of each metric."""
    return {
        name: (statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan)
        for name in trials[0].metrics
        for values in [[trial.metrics[name] for trial in trials]]
    }
