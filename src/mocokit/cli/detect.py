"""`mocokit detect`: fine-tune detectors from a run's backbone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mocokit.cli.arguments import parse, take_name

if TYPE_CHECKING:
    from mocokit.detection.data_sets import DetectionSet
    from mocokit.detection.recipes import DetectionRecipe
    from mocokit.detection.trials import Trial

DEFAULTS = {
    "voc": ("voc-c4-24k", "2007_trainval+2012_trainval", "2007_test"),
    "coco": ("coco-c4-2x", "train2017", "val2017"),
}
"""Layout -> the official recipe, training lists and test list."""


@dataclass(frozen=True, kw_only=True)
class Detect:
    """Fine-tune Faster or Mask R-CNN from RUN (a run folder, a backbone file, or `random`), and measure its AP."""

    data: str
    """Folder that contains VOC2007 (and VOC2012), or COCO's annotations."""
    out: str
    """Folder for the results of each trial; the same command continues after a kill."""
    layout: Literal["voc", "coco"] = "voc"
    """Layout of the data folder."""
    recipe: str = ""
    """voc-c4-24k, coco-c4-2x or coco-fpn-1x; empty: the first of the layout. Masks are learnt if the data has any."""
    train: str = ""
    """List to train on, several VOC lists joined by +; empty: the official ones."""
    test: str = ""
    """List to test on; empty: the official one."""
    batch: int = 16
    """Images per iteration; learning rate and iterations are rescaled to it."""
    iterations: int | None = None
    """Iterations at that batch; None: the recipe's. The drops of the learning rate move in proportion."""
    short_side: int = 800
    """Short side of test images (pixels); training sizes and anchors move in proportion."""
    regions: int = 512
    """Regions per image that the head learns from; fewer are faster."""
    trials: int = 1
    """Number of fine-tunings with different seeds; officially 5."""
    arch: str = "resnet50"
    """Architecture of the backbone if RUN is `random`."""
    skip_difficult: bool = False
    """Leave VOC's difficult objects out of training; Detectron2, and so the official numbers, train on them."""
    seed: int = 0
    """Seed of all randomness."""
    workers: int = -1
    """Loader processes; 0: none, threads load each batch between the steps; -1: none if the CPU trains, else one per
    core."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def detect_command(arguments: list[str]) -> int:
    """Fine-tune detectors from a backbone and print their average precisions."""
    run, rest = take_name(arguments, "RUN", "detect RUN --data D --out DIR [--layout voc|coco] [--batch 2]")
    example = "mocokit detect runs/a --data VOCdevkit --out detection --batch 2"
    asked = parse(Detect, rest, prog=f"mocokit detect {run}", example=example)

    from mocokit.detection.trials import RANDOM, TrialPlan, run_trials
    from mocokit.engine.backbone_file import load_backbone
    from mocokit.engine.device import pick_device

    pick_device(asked.device, local_rank=0)  # now: a wrong name must not cost the minutes that reading takes
    if run != RANDOM:
        load_backbone(run)  # before the annotations are read, which can take minutes: the run can be mistyped
    recipe_name, train_lists, test_list = DEFAULTS[asked.layout]
    recipe = _choose_recipe(asked, asked.recipe or recipe_name)
    training_set = _open(asked, asked.train or train_lists, None)
    plan = TrialPlan(
        run=run,
        arch=asked.arch,
        train=training_set.for_training(skip_difficult=asked.skip_difficult),
        test=_open(asked, asked.test or test_list, training_set.class_names),
        recipe=recipe,
        seed=asked.seed,
        device_name=asked.device,
        num_workers=asked.workers,
    )
    _print_plan(recipe, plan.train, plan.test)
    out = Path(asked.out).expanduser()
    _print_trials(run_trials(plan, num_trials=asked.trials, out=out, on_iteration=_progress(recipe)))
    return 0


def _choose_recipe(asked: Detect, name: str) -> "DetectionRecipe":
    """Return the recipe of that name, changed by the flags."""
    from mocokit.detection.recipes import RECIPES
    from mocokit.settings import choose

    recipe = choose("recipe", name, RECIPES).rescaled(asked.batch).at_short_side(asked.short_side)
    recipe = recipe if asked.iterations is None else recipe.shortened(asked.iterations)
    masks = recipe.masks and asked.layout == "coco"
    return replace(recipe, regions_per_image=asked.regions, masks=masks)


def _open(asked: Detect, lists: str, class_names: "tuple[str, ...] | None") -> "DetectionSet":
    from mocokit.detection.data_sets import open_coco, open_voc

    if asked.layout == "coco":
        return open_coco(asked.data, lists, class_names=class_names)
    return open_voc(asked.data, lists.split("+"), class_names=class_names)


def _print_plan(recipe: "DetectionRecipe", train: "DetectionSet", test: "DetectionSet") -> None:
    images = f"{len(train.images)} training and {len(test.images)} test images"
    print(f"{recipe.name}: {images} of {len(train.class_names)} classes")
    steps = ", ".join(map(str, recipe.milestones))
    print(f"{recipe.iterations} iterations of {recipe.batch_size} images, lr {recipe.lr:g}, steps at {steps}")


def _progress(recipe: "DetectionRecipe") -> Callable[[int, int, float], None]:
    """Return a callback that prints about twenty lines per trial."""
    every = max(1, recipe.iterations // 20)

    def on_iteration(trial: int, done: int, loss: float) -> None:
        if done % every == 0 or done == recipe.iterations:
            print(f"trial {trial + 1}: iteration {done} of {recipe.iterations}, loss {loss:.3f}", flush=True)

    return on_iteration


def _print_trials(trials: "list[Trial]") -> None:
    from mocokit.detection.trials import mean_and_std

    print("trial".ljust(10) + "".join(f"{name:>12}" for name in trials[0].metrics))
    for trial in trials:
        print(str(trial.trial + 1).ljust(10) + "".join(f"{value:12.1f}" for value in trial.metrics.values()))
    if len(trials) > 1:
        statistics = mean_and_std(trials).values()
        print("mean".ljust(10) + "".join(f"{mean:12.1f}" for mean, _ in statistics))
        print("std".ljust(10) + "".join(f"{std:12.1f}" for _, std in statistics))
