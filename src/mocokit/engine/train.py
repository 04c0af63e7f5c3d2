"""The training loop, and the step of every method."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mocokit.data.batch import ViewBatch
from mocokit.data.loading.prefetch import on_device
from mocokit.distributed.gradients import GradientSum, gradient_sum
from mocokit.engine.optimizer import set_lr, step_if_finite
from mocokit.engine.precision import Precision
from mocokit.engine.recorder import Recorder
from mocokit.engine.stop_signal import StopSignal
from mocokit.methods.contract import Method, Rows, cat_rows
from mocokit.randomness import Purpose, torch_seed


def train(
    method: Method[Any],
    batches: Iterable[ViewBatch],
    *,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    device: torch.device,
    lr_of_step: Callable[[int], float],
    start_step: int,
    clip_norm: float = 0.0,
    seed: int,
    recorder: Recorder,
    signals: StopSignal,
) -> int:
    """Train on `batches`, the first of which belongs to step `start_step`; return the number of steps done.

    The run ends early, with a checkpoint written, when a signal came to any rank. Raises NonFiniteLossError for a NaN
    or infinite loss or gradient, before it reaches the weights or a checkpoint.
    """
    gradients = gradient_sum(method)
    stream = on_device(batches, device)
    step = start_step
    recorder.clock.restart()  # building the run is no part of its speed; waiting for the first batch is
    while (views := _next_batch(stream, recorder)) is not None:
        lr = lr_of_step(step)
        set_lr(optimizer, lr)
        torch.manual_seed(torch_seed(seed, Purpose.STEP, step))  # for backbones that draw, such as dropout
        rows, finite = train_step(
            method, views, step, gradients=gradients, optimizer=optimizer, precision=precision, clip_norm=clip_norm
        )
        recorder.count(views, rows, step=step, finite=finite)
        step += 1
        if recorder.after_step(step, lr=lr, stop=signals.agree()):
            break
    return step


def train_step(
    method: Method[Any],
    views: ViewBatch,
    step: int,
    *,
    gradients: GradientSum,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    clip_norm: float = 0.0,
    lap: Callable[[str], object] = lambda part: None,
) -> tuple[Rows, Tensor]:
    """Take one optimizer step on a global batch (MoCo v1 Algorithm 1).

    Args:
        method: The method; its own file says what its parts of the step compute.
        views: This rank's rows of the batch, on the device.
        step: Optimizer steps done before.
        gradients: Adds up gradients over ranks.
        optimizer: Of the method's trained parameters.
        precision: Number formats, and the loss scaler of float16.
        clip_norm: Largest length of the gradient; 0: any.
        lap: Called with the name of each part that has just ended, for timing.

    Returns:
        The rows of this rank's images, and a scalar on the device that is False if a gradient was NaN or infinite; the
        step then changed nothing (see `step_if_finite`).

    """
    with precision.autocast(), gradients.together():
        batch = method.prepare(views, step)  # MoCo: momentum update, then keys (B, C) without gradient
    lap("momentum update and keys")

    parts = []
    micro_batches = method.layout.micro_batches_of(len(views.query))
    for micro in micro_batches:
        with precision.autocast():
            # Each loss is a sum over images divided by B: over micro-batches and ranks they add up to the batch mean.
            loss, rows = gradients.forward(method.loss, batch, micro, is_last=micro is micro_batches[-1])
        lap("queries and loss")
        gradients.backward(precision.scaler.scale(loss))
        lap("backward")
        parts.append(rows)

    finite = step_if_finite(optimizer, precision.scaler, clip_norm=clip_norm)
    optimizer.zero_grad(set_to_none=True)
    rows = cat_rows(parts)
    method.remember(batch, rows)  # enqueue: only now, so that no key is a negative of its own batch
    lap("optimizer and queue")
    return rows, finite


def _next_batch(stream: Iterator[ViewBatch], recorder: Recorder) -> ViewBatch | None:
    start = time.perf_counter()
    views = next(stream, None)
    recorder.clock.waited(time.perf_counter() - start)
    return views
