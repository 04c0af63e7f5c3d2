"""What happens between optimizer steps: log, watch, save. The loop itself is in train.py."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mocokit import distributed
from mocokit.config.schema import Config
from mocokit.config.toml import to_toml
from mocokit.engine import health
from mocokit.engine.background import BackgroundWriter
from mocokit.engine.bad_images import BadImageCounter
from mocokit.engine.checkpoint import copied_to_cpu, list_checkpoints, save_checkpoint
from mocokit.engine.metrics import MeterBoard, MetricsLog, StepClock
from mocokit.engine.progress import ProgressView
from mocokit.engine.run_folder import RunFolder

LOGGER = logging.getLogger("mocokit")


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What the composition of a run adds to it."""

    state: Callable[[], dict[str, Any]]
    """All that a checkpoint must hold, but the step and the config."""
    gauges: Callable[[], dict[str, float]]
    """Numbers of the method's own state, such as the share of the queue that holds real keys."""
    export: Callable[[dict[str, Any], int], None]
    """Write the backbone out of a copied state, of after that many steps, for others to use."""
    gather: Callable[[], None]
    """What ranks do together before one evaluates alone."""
    evaluate: Callable[[], dict[str, float]] | None
    """The kNN monitor; None without labels."""


class Bookkeeper:
    """Keeps the books of one run; every method is called on every rank.

    Args:
        config: The run's settings.
        folder: Where its files go.
        board: Meters that the loop feeds.
        view: What the user sees.
        callbacks: Parts that live outside the engine.
        bad_images: Counter of unreadable images.
        steps_per_epoch: Steps in an epoch.
        start_step: Steps done before.

    """

    def __init__(
        self,
        *,
        config: Config,
        folder: RunFolder,
        board: MeterBoard,
        view: ProgressView,
        callbacks: Callbacks,
        bad_images: BadImageCounter,
        steps_per_epoch: int,
        start_step: int,
    ) -> None:
        self.config = config
        self.folder = folder
        self.board = board
        self.view = view
        self.callbacks = callbacks
        self.bad_images = bad_images
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = steps_per_epoch * config.optim.epochs
        self.clock = StepClock()
        self.metrics = MetricsLog(folder.path, from_step=start_step)
        self.latest: dict[str, float] = {}
        self._writer = BackgroundWriter()
        self._last_save = time.monotonic()
        self._newest_save = start_step
        self._warned: set[str] = set()

    def after_step(self, step: int, *, lr: float, stop: bool) -> bool:
        """Do what is due after `step` steps; whether the run must end here because a rank was told to."""
        self.view.step(step)
        self._writer.raise_if_failed()
        stop = distributed.any_rank(stop)
        end_of_epoch = step % self.steps_per_epoch == 0
        if stop or end_of_epoch or step % self.config.run.log_every == 0:
            self._log(step, lr)
            if stop or end_of_epoch or distributed.any_rank(self._is_due()):
                self.save(step)
        if end_of_epoch and not stop:
            self._evaluate(step)
        return stop

    def _is_due(self) -> bool:
        """Whether the main rank's clock asks for a save; a slow disk is waited for at an epoch's end only."""
        elapsed_s = time.monotonic() - self._last_save
        return distributed.is_main() and elapsed_s > 60 * self.config.run.save_minutes and not self._writer.is_busy()

    def _log(self, step: int, lr: float) -> None:
        bad_step = self.board.bad_step()
        if bad_step is not None:
            raise health.NonFiniteLossError(bad_step, self._last_good())
        for image in self.bad_images.exchange():
            self._tell(f"bad image {image.name}: {image.reason}; replaced by another", show=False)
        values = {
            **self.board.means(),
            **self.clock.read(),
            "lr": lr,
            **self.callbacks.gauges(),
        }
        values["epoch"] = step / self.steps_per_epoch
        self.latest.update(values)
        self.metrics.write(step, values)
        self.view.metrics(step, values)
        for line in health.warnings_of_metrics(values, step=step):
            kind = line.split(":")[0]
            if kind not in self._warned:
                self._warned.add(kind)
                self._tell(line, level=logging.WARNING)

    def _evaluate(self, step: int) -> None:
        every = self.config.run.knn_every
        epoch = step // self.steps_per_epoch
        last = step == self.total_steps
        if self.callbacks.evaluate is None or every == 0 or (epoch % every and not last):
            return
        self.callbacks.gather()
        with distributed.work_alone():
            values = self.callbacks.evaluate() if distributed.is_main() else {}
        self.latest.update(values)
        self.metrics.write(step, values)
        if values:
            self._tell(f"epoch {epoch}: " + ", ".join(f"{name} {value:.1%}" for name, value in values.items()))
        self.clock.restart()

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after `step` steps, and the backbone beside it, while training goes on.

        The state is copied here; a save that is still on its way is waited for.
        """
        self._last_save = time.monotonic()
        self._newest_save = step
        state = self.callbacks.state()  # of all ranks, which may hold parts of it
        if not distributed.is_main():
            return
        self._writer.wait()  # before the copy: there is never more than one
        state = copied_to_cpu({**state, "step": step, "config": to_toml(self.config)})

        def write() -> None:
            """The checkpoint, then the backbone; beside the training."""
            save_checkpoint(self.folder.checkpoints, state, step=step, keep_last=self.config.run.keep_last)
            if step == self._newest_save:  # else the next save is waiting, perhaps with seconds to live
                self.callbacks.export(state, step)

        self._writer.start(write)

    def finish(self) -> None:
        """Wait, on every rank, until all is on the disk: a rank that ends early makes torchrun end the others."""
        with distributed.work_alone():
            self._writer.wait()
        distributed.barrier()

    def close(self) -> None:
        """Let a save that is on its way end, and close the files."""
        try:
            self._writer.close()
        finally:
            self.metrics.close()

    def _last_good(self) -> str:
        self._writer.wait()
        kept = list_checkpoints(self.folder.checkpoints)
        return f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"

    def _tell(self, line: str, *, level: int = logging.INFO, show: bool = True) -> None:
        LOGGER.log(level, line)
        if show:
            self.view.say(line)
