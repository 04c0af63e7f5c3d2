"""Fine-tune a detector: the training loop, its optimizer, and precise BatchNorm."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mocokit.data.loading.loader import build_loader
from mocokit.detection.batches import AspectOrder, DetectionExample, DetectionViews
from mocokit.detection.data_sets import DetectionSet
from mocokit.detection.recipes import DetectionRecipe
from mocokit.engine.checkpoint import list_checkpoints, load_newest, save_checkpoint
from mocokit.engine.optimizer import set_lr
from mocokit.randomness import Purpose, torch_seed
from mocokit.settings import require

SAVE_EVERY = 1000
"""Iterations between checkpoints of a trial."""


def build_optimizer(detector: nn.Module, recipe: DetectionRecipe) -> torch.optim.SGD:
    """Return SGD with weight decay on all parameters except those of BatchNorm (Detectron2: WEIGHT_DECAY_NORM 0)."""
    norms = [own for layer in detector.modules() if isinstance(layer, _BatchNorm) for own in layer.parameters()]
    known = {id(parameter) for parameter in norms}
    others = [parameter for parameter in detector.parameters() if id(parameter) not in known]
    groups = [
        {"params": others, "weight_decay": recipe.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.sgd_momentum)


def train_detector(
    detector: nn.Module,
    images: DetectionSet,
    recipe: DetectionRecipe,
    *,
    device: torch.device,
    seed: int,
    num_workers: int = 0,
    checkpoints: Path | None = None,
    on_iteration: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `detector` in place, then re-estimate its BatchNorm statistics; return the loss of each iteration.

    Args:
        detector: Detector on `device`.
        images: Training images, each with at least one object.
        recipe: Schedule and sizes.
        device: Device to compute on.
        seed: Seed of the order of images, their views and the sampling of regions.
        num_workers: Loader processes; 0: threads.
        checkpoints: Folder of checkpoints, saved every SAVE_EVERY iterations and continued from; None: no checkpoints.
        on_iteration: Called with the number of iterations done and the loss.

    Raises:
        FloatingPointError: The loss is not finite.
        ValueError: A batch is larger than the set, or the recipe learns masks and the set has none.

    """
    count = len(images.images)
    require(recipe.batch_size <= count, "batch", recipe.batch_size, f"larger than the {count} training images")
    if recipe.masks and images.coco_file is None:
        raise ValueError(f"recipe={recipe.name}: learns masks, which VOC folders lack; use COCO folders or masks=False")
    optimizer = build_optimizer(detector, recipe)
    losses = list[float]()
    if checkpoints is not None and list_checkpoints(checkpoints):
        state, _ = load_newest(checkpoints)
        detector.load_state_dict(state["detector"])
        optimizer.load_state_dict(state["optimizer"])
        losses = list(state["losses"])
    batches = training_batches(images, recipe, start=len(losses), seed=seed, num_workers=num_workers)
    detector.train()
    for iteration in range(len(losses), recipe.iterations):
        set_lr(optimizer, recipe.lr_of(iteration))
        torch.manual_seed(torch_seed(seed, Purpose.STEP, iteration))  # torchvision samples anchors and regions
        loss = _loss(detector, next(batches), device)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(_finite(loss, iteration, recipe))
        if on_iteration is not None:
            on_iteration(iteration + 1, losses[-1])
        if checkpoints is not None and (iteration + 1) % SAVE_EVERY == 0:
            state = {"losses": losses, "detector": detector.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(checkpoints, {**state, "step": iteration + 1}, step=iteration + 1, keep_last=1)
    precise_batchnorm(detector, (next(batches) for _ in range(recipe.precise_bn_iterations)), device=device)
    return losses


def training_batches(
    images: DetectionSet, recipe: DetectionRecipe, *, start: int, seed: int, num_workers: int
) -> Iterator[list[DetectionExample]]:
    """Return the batches from iteration `start` on; after the last iteration follow those of precise BatchNorm."""
    views = DetectionViews(
        images=images.images,
        short_sides_px=recipe.train_short_sides_px,
        max_long_side_px=recipe.max_long_side_px,
        mirror=True,
        masks=recipe.masks,
        seed=seed,
        value_ranges=images.value_ranges,
    )
    order = AspectOrder(
        images=images.images,
        batch_size=recipe.batch_size,
        start_step=start,
        total_steps=recipe.iterations + recipe.precise_bn_iterations,
        seed=seed,
    )
    return iter(build_loader(views, order, num_workers=num_workers))


def _loss(detector: nn.Module, batch: list[DetectionExample], device: torch.device) -> Tensor:
    """Return the sum of the losses of proposals, classes, boxes and masks, each with weight 1."""
    pixels = [example.pixels.to(device, non_blocking=True).float() / 255 for example in batch]
    targets = [{name: value.to(device) for name, value in example.target.items()} for example in batch]
    losses: dict[str, Tensor] = detector(pixels, targets)
    return torch.stack(list(losses.values())).sum()


def _finite(loss: Tensor, iteration: int, recipe: DetectionRecipe) -> float:
    """Return the loss as a number; raise FloatingPointError if it is not finite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(f"lr={recipe.lr:g}: the loss is {value} at iteration {iteration}; use a smaller batch")
    return value


@torch.no_grad()
def precise_batchnorm(detector: nn.Module, batches: Iterable[list[DetectionExample]], *, device: torch.device) -> None:
    """Set BatchNorm's running statistics to their mean over `batches` (PRECISE_BN; officially 200 batches).

    Training leaves a moving average over about ten batches, during which the weights changed.
    """
    layers = [layer for layer in detector.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch then averages all batches with equal weight
    for batch in batches:
        _loss(detector, batch, device)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
