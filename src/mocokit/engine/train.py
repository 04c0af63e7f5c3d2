"""The loop."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from mocokit import distributed
from mocokit.data.batch import ViewBatch
from mocokit.data.loading.prefetch import on_device
from mocokit.distributed.gradients import GradientSum, gradient_sum
from mocokit.engine.optimizer import set_lr, step_if_finite
from mocokit.engine.precision import Precision
from mocokit.engine.recorder import Bookkeeper
from mocokit.engine.stop_signal import StopSignal
from mocokit.methods.groups import GroupLayout
from mocokit.randomness import Purpose, torch_seed


class Method(Protocol):
    """A contrastive method: the maths of one global batch. The engine owns order, optimizer and precision."""

    row_metrics: dict[str, Tensor]
    """Values of each of this rank's rows in the last batch; `loss` and `contrast_acc` at least."""
    chance_loss: float
    """The loss while no positive is told from its negatives."""
    layout: GroupLayout
    """Which part of the batch this rank computes."""

    def prepare(self, query: Tensor, key: Tensor, image_ids: Tensor, step: int, local: Tensor | None = None) -> None:
        """All that needs no gradient, on the whole batch; `local` crops are further queries of the same images."""
        ...

    def micro_losses(self) -> Iterator[Tensor]:
        """A scalar to backpropagate for each micro-batch; their sum over these and ranks is the batch's mean loss."""
        ...

    def remember(self) -> None:
        """What follows the optimizer step."""
        ...

    def gauges(self) -> dict[str, float]:
        """Numbers of the method's own state for a log line."""
        ...

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Parameters; those that take a gradient are trained."""
        ...

    def modules(self) -> Iterator[torch.nn.Module]:
        """Itself and all that is inside."""
        ...


def train(
    method: Method,
    batches: Iterable[ViewBatch],
    *,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    device: torch.device,
    lr_of_step: Callable[[int], float],
    start_step: int,
    clip_norm: float = 0.0,
    seed: int,
    books: Bookkeeper,
    signals: StopSignal,
) -> int:
    """Train on `batches`, the first of which belongs to step `start_step`; returns the number of steps done.

    Ends early, with a checkpoint written, when a signal came. Raises NonFiniteLossError for a NaN or infinite loss or
    gradient, before it reaches the weights or a checkpoint.
    """
    step = start_step
    stream = on_device(batches, device)
    assert isinstance(method, torch.nn.Module)
    gradients = gradient_sum(method)
    while (batch := _next_batch(stream, books)) is not None:
        lr = lr_of_step(step)
        set_lr(optimizer, lr)
        torch.manual_seed(torch_seed(seed, Purpose.STEP, step))  # for backbones that draw, such as dropout

        finite = train_step(
            method, batch, step, gradients=gradients, optimizer=optimizer, precision=precision, clip_norm=clip_norm
        )
        books.board.add(method.row_metrics, step=step, finite=finite)
        books.bad_images.add(batch.bad)
        books.clock.trained(len(batch.image_ids) * distributed.world_size())
        step += 1
        if books.after_step(step, lr=lr, stop=signals.received is not None):
            break
    return step


def train_step(
    method: Method,
    batch: ViewBatch,
    step: int,
    *,
    gradients: GradientSum,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    clip_norm: float = 0.0,
) -> Tensor:
    """One optimizer step on a batch; whether its gradient was finite, a scalar on the device (see `step_if_finite`)."""
    with precision.autocast(), gradients.together():
        method.prepare(batch.query, batch.key, batch.image_ids, step, batch.local)
    losses = gradients.each(method.micro_losses(), len(method.layout.micro_batches_of(len(batch.query))))
    for loss in precision.forward_each(losses):
        gradients.backward(precision.scaler.scale(loss))
    finite = step_if_finite(optimizer, precision.scaler, clip_norm=clip_norm)
    optimizer.zero_grad(set_to_none=True)
    method.remember()
    return finite


def _next_batch(stream: Iterator[ViewBatch], books: Bookkeeper) -> ViewBatch | None:
    start = time.perf_counter()
    batch = next(stream, None)
    books.clock.waited(time.perf_counter() - start)
    return batch
