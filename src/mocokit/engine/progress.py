"""Progress display of a run: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from mocokit import distributed

SECONDS_BETWEEN_LINES = 30.0


class _Numbers(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("numbers", "")), style="cyan")


class ProgressView:
    """Display of steps and metrics on the main rank; the other ranks show nothing.

    Args:
        total_steps: Length of the run.
        done_steps: Steps done before this start.
        steps_per_epoch: Steps in an epoch.
        chance_loss: Loss of a network that tells nothing apart, shown beside the loss.

    """

    def __init__(self, *, total_steps: int, done_steps: int, steps_per_epoch: int, chance_loss: float) -> None:
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.chance_loss = chance_loss
        self.console = Console(stderr=True, soft_wrap=True, quiet=not distributed.is_main())
        self._live = self.console.is_terminal
        self._start = time.monotonic()
        self._start_step = done_steps
        self._last_line = float("-inf")
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            _Numbers(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=done_steps)

    def __enter__(self) -> "ProgressView":
        self._progress.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._progress.stop()

    def step(self, step: int) -> None:
        """Show that `step` steps are done."""
        self._progress.update(self._task, completed=step, description=self._position(step))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Show the metrics of a log line; without a terminal, at most every 30 s and at the end."""
        numbers = (
            f"loss {values['loss']:.3f} (chance {self.chance_loss:.2f})  "
            f"contrast_acc {values['contrast_acc']:.1%}  {values['images_per_s']:,.0f} img/s  "
            f"data wait {values['data_wait_share']:.0%}"
        )
        if values.get("skipped_steps"):
            numbers += f"  skipped {values['skipped_steps']:.0f} steps"
        if self._live:
            self._progress.update(self._task, numbers=numbers)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES or step == self.total_steps:
            self._last_line = time.monotonic()
            self.say(f"{self._position(step)}  {numbers}  {self._remaining(step)}")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, highlight=False, markup=False)

    def _position(self, step: int) -> str:
        epochs = self.total_steps // self.steps_per_epoch
        epoch = min(max(step - 1, 0) // self.steps_per_epoch + 1, epochs)
        return f"epoch {epoch}/{epochs} step {step}/{self.total_steps}"

    def _remaining(self, step: int) -> str:
        done = max(1, step - self._start_step)
        seconds = (time.monotonic() - self._start) / done * (self.total_steps - step)
        return f"ETA {int(seconds // 3600)}:{int(seconds % 3600 // 60):02d}:{int(seconds % 60):02d}"
