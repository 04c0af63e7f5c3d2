"""Between optimizer steps: log metrics, watch the run's health, evaluate, save. The loop itself is in train.py."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mocokit import distributed
from mocokit.data.batch import ViewBatch
from mocokit.engine import health
from mocokit.engine.background import BackgroundWriter
from mocokit.engine.bad_images import BadImageCounter
from mocokit.engine.checkpoint import copied_to_cpu, list_checkpoints, save_checkpoint
from mocokit.engine.metrics import MeterBoard, MetricsLog, StepClock
from mocokit.engine.progress import ProgressView
from mocokit.engine.run_folder import LOGGER, RunFolder
from mocokit.methods.contract import Rows


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Parts of a run that live outside the engine."""

    state: Callable[[], dict[str, Any]]
    """Returns the content of a checkpoint, except the step; called on all ranks, since each may hold a part of it."""
    gauges: Callable[[], dict[str, float]]
    """Returns numbers of the method's own state, such as the share of the queue that holds real keys."""
    export: Callable[[dict[str, Any], int], None]
    """Writes the backbone out of (a copied state, its step), for others to use."""
    gather: Callable[[], None]
    """Brings together what `evaluate` needs; called on all ranks."""
    evaluate: Callable[[], dict[str, float]] | None
    """The kNN monitor, called on the main rank; None without labels."""


class Recorder:
    """Records one run; every method is called on every rank.

    Args:
        folder: The run folder.
        board: Meters of the rows' metrics.
        view: Shows progress to the user.
        callbacks: Parts that live outside the engine.
        bad_images: Counter of unreadable images.
        steps_per_epoch: Optimizer steps of an epoch.
        total_steps: Optimizer steps of the whole run.
        start_step: Steps done before.
        log_every: Steps between lines of metrics.jsonl.
        save_minutes: Minutes between checkpoints; one is written at the end of each epoch too.
        keep_last: Checkpoints to keep.
        knn_every: Epochs between kNN evaluations; 0: none. The last epoch always has one.

    """

    def __init__(
        self,
        *,
        folder: RunFolder,
        board: MeterBoard,
        view: ProgressView,
        callbacks: Callbacks,
        bad_images: BadImageCounter,
        steps_per_epoch: int,
        total_steps: int,
        start_step: int,
        log_every: int,
        save_minutes: float,
        keep_last: int,
        knn_every: int,
    ) -> None:
        self.log_every = log_every
        self.save_minutes = save_minutes
        self.keep_last = keep_last
        self.knn_every = knn_every
        self.folder = folder
        self.board = board
        self.view = view
        self.callbacks = callbacks
        self.bad_images = bad_images
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        self.clock = StepClock()
        self.metrics = MetricsLog(folder.path, from_step=start_step)
        self.latest: dict[str, float] = {}
        """Newest value of each metric."""
        self._writer = BackgroundWriter()
        self._last_save_s = time.monotonic()
        self._newest_save = start_step
        self._warned: set[str] = set()

    def count(self, views: ViewBatch, rows: Rows, *, step: int, finite: Tensor) -> None:
        """Count one step's rows and images; `finite` is False if its gradient was not. Never waits for the device."""
        self.board.add(rows, step=step, finite=finite)
        self.bad_images.add(views.bad)
        self.clock.trained(len(views.image_ids) * distributed.world_size())

    def after_step(self, step: int, *, lr: float, stop: bool) -> bool:
        """Do what is due after `step` steps; return True if the run must end here because any rank was told to stop."""
        self.view.step(step)
        self._writer.raise_if_failed()
        stop = distributed.any_rank(stop)
        end_of_epoch = step % self.steps_per_epoch == 0
        if stop or end_of_epoch or step % self.log_every == 0:
            self._log(step, lr)
            if stop or end_of_epoch or distributed.any_rank(self._save_is_due()):
                self.save(step)
        if end_of_epoch and not stop:
            self._evaluate(step)
        return stop

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after `step` steps, and the backbone beside it, while training goes on.

        The state is copied here. A save that is still being written is waited for, so there is one copy at most.
        """
        self._last_save_s = time.monotonic()
        self._newest_save = step
        state = self.callbacks.state()
        if not distributed.is_main():
            return
        self._writer.wait()
        state = copied_to_cpu({**state, "step": step})

        def write() -> None:
            """Write the checkpoint, then the backbone; runs in a thread of its own."""
            save_checkpoint(self.folder.checkpoints, state, step=step, keep_last=self.keep_last)
            if step == self._newest_save:  # else the next save waits, maybe in a process that will be killed soon
                self.callbacks.export(state, step)

        self._writer.start(write)

    def finish(self) -> None:
        """Wait, on every rank, until all is on the disk: a rank that ends early makes torchrun end the others."""
        with distributed.work_alone():
            self._writer.wait()
        distributed.barrier()

    def close(self) -> None:
        """Wait for a save that is being written, and close the files."""
        try:
            self._writer.close()
        finally:
            self.metrics.close()

    def _save_is_due(self) -> bool:
        """Return True if the main rank's clock asks for a save. It never waits for a slow disk within an epoch."""
        elapsed_s = time.monotonic() - self._last_save_s
        return distributed.is_main() and elapsed_s > 60 * self.save_minutes and not self._writer.is_busy()

    def _log(self, step: int, lr: float) -> None:
        bad_step = self.board.bad_step()
        if bad_step is not None:
            self._writer.wait()
            raise health.NonFiniteLossError(bad_step, describe_newest(self.folder))
        for image in self.bad_images.exchange():
            self._tell(f"bad image {image.name}: {image.reason}; replaced by another", show=False)
        self.bad_images.require_few()  # after the log names them all
        values = {**self.board.means(), **self.clock.read(), "lr": lr, **self.callbacks.gauges()}
        values["epoch"] = step / self.steps_per_epoch
        self.latest.update(values)
        self.metrics.write(step, values)
        self.view.metrics(step, values)
        for line in health.warnings_of_metrics(values, step=step):
            if (kind := line.split(":")[0]) not in self._warned:
                self._warned.add(kind)
                self._tell(line, level=logging.WARNING)

    def _evaluate(self, step: int) -> None:
        epoch = step // self.steps_per_epoch
        is_due = self.knn_every and (epoch % self.knn_every == 0 or step == self.total_steps)
        if self.callbacks.evaluate is None or not is_due:
            return
        self.callbacks.gather()
        with distributed.work_alone():
            values = self.callbacks.evaluate() if distributed.is_main() else {}
        self.latest.update(values)
        self.metrics.write(step, values)
        if values:
            self._tell(f"epoch {epoch}: " + ", ".join(f"{name} {value:.1%}" for name, value in values.items()))
        self.clock.restart()

    def _tell(self, line: str, *, level: int = logging.INFO, show: bool = True) -> None:
        LOGGER.log(level, line)
        if show:
            self.view.say(line)


def describe_newest(folder: RunFolder) -> str:
    """Return a sentence that names the newest checkpoint of a run."""
    kept = list_checkpoints(folder.checkpoints)
    return f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
