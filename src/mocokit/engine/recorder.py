"""Between optimizer steps: log metrics, watch the run's health, evaluate, save. The loop itself is in train.py."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mocokit import distributed
from mocokit.data.batch import ViewBatch
from mocokit.engine import health, monitoring
from mocokit.engine.bad_images import BadImageCounter
from mocokit.engine.metrics import MeterBoard, MetricsLog, StepClock
from mocokit.engine.progress import ProgressView
from mocokit.engine.run_folder import LOGGER, RunFolder
from mocokit.engine.saving import Saver
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
    find_bad: Callable[[], str | None]
    """Returns the name of a tensor of this rank's state that became NaN or infinite, or None."""


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
        self.knn_every = knn_every
        self.board = board
        self.view = view
        self.callbacks = callbacks
        self.bad_images = bad_images
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        self.clock = StepClock()
        self.metrics = MetricsLog(folder.path, from_step=start_step)
        self.latest: dict[str, float] = distributed.all_gather_objects(self.metrics.latest)[0]
        """Newest value of each metric."""
        self.saver = Saver(
            folder=folder,
            state=callbacks.state,
            export=callbacks.export,
            find_bad=callbacks.find_bad,
            save_minutes=save_minutes,
            keep_last=keep_last,
            start_step=start_step,
        )
        self._warned: set[str] = set()
        for problem in self.metrics.problems:
            self._tell(problem, level=logging.WARNING)

    def catch_up(self, step: int, *, exported_step: int | None) -> None:
        """Do what a run that was killed right after its save at `step` left undone: backbone file and evaluation.

        Args:
            step: Steps done before this start.
            exported_step: Step of the run's backbone file; None if there is none.

        """
        if distributed.any_rank(distributed.is_main() and exported_step != step):
            self.saver.export_again(step)
        if distributed.any_rank(distributed.is_main() and not self.metrics.is_evaluated):
            self._evaluate(step)

    def count(self, views: ViewBatch, rows: Rows, *, step: int, finite: Tensor) -> None:
        """Count one step's rows and images; `finite` is False if its gradient was not. Never waits for the device."""
        self.board.add(rows, step=step, finite=finite)
        self.bad_images.add(views.bad)
        self.clock.trained(len(views.image_ids))

    def after_step(self, step: int, *, lr: float, stop: bool) -> bool:
        """Do what is due after `step` steps; return `stop`: True, on all ranks alike, if the run ends here."""
        self.view.step(step)
        self.saver.raise_if_failed()
        end_of_epoch = step % self.steps_per_epoch == 0
        if stop or end_of_epoch or step % self.log_every == 0:
            self._log(step, lr)
            if stop or end_of_epoch or self.saver.is_due():
                self.saver.save(step)
        if not stop:
            self._evaluate(step)
        return stop

    def finish(self) -> None:
        """Wait, on every rank, until all is on the disk; tell how many images could not be read."""
        self.saver.finish()
        if summary := self.bad_images.summary():
            self._tell(summary, level=logging.WARNING)

    def close(self) -> None:
        """Wait for a save that is being written, and close the files."""
        try:
            self.saver.close()
        finally:
            self.metrics.close()

    def _log(self, step: int, lr: float) -> None:
        self._raise_if_it_cannot_learn(step)
        self.bad_images.tell_new(self._tell)
        num_steps = self.board.num_steps
        values = {**self.board.means(), **self.clock.read(), "lr": lr, **self.callbacks.gauges()}
        values["epoch"] = step / self.steps_per_epoch
        self.latest.update(values)
        self.metrics.write(step, values)
        self.view.metrics(step, values)
        for line in health.warnings_of_metrics(values, step=step, num_steps=num_steps):
            kind = line.split(":")[0]
            if kind not in self._warned:
                self._warned.add(kind)
                self._tell(line, level=logging.WARNING)

    def _raise_if_it_cannot_learn(self, step: int) -> None:
        """Raise NonFiniteLossError, on all ranks, for a NaN or infinite loss or gradient, or too many skipped steps."""
        bad_step = self.board.bad_step()
        skipped = self.board.most_skipped_in_a_row()
        if bad_step is not None:
            raise health.NonFiniteLossError(bad_step, self.saver.describe_newest())
        if skipped >= health.MAX_SKIPPED_IN_A_ROW:
            raise health.SkippedStepsError(step, skipped, self.saver.describe_newest())

    def _evaluate(self, step: int) -> None:
        measure = self.callbacks.evaluate
        epochs = {"every_epochs": self.knn_every, "steps_per_epoch": self.steps_per_epoch}
        if measure is None or not monitoring.is_due(step, **epochs, total_steps=self.total_steps):
            return
        epoch = step // self.steps_per_epoch
        done = monitoring.evaluate(self.callbacks.gather, measure)
        if done.problem:
            self._tell(f"epoch {epoch}: not evaluated ({done.problem}); the run goes on", level=logging.WARNING)
        else:
            self.latest.update(done.values)
            self.metrics.write(step, done.values)
            self._tell(f"epoch {epoch}: " + ", ".join(f"{name} {value:.1%}" for name, value in done.values.items()))
        self.clock.restart()

    def _tell(self, line: str, *, level: int = logging.INFO, show: bool = True) -> None:
        LOGGER.log(level, line)
        if show:
            self.view.say(f"warning: {line}" if level == logging.WARNING else line)
