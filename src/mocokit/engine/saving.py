"""Save a run while it trains: checkpoints and the backbone file, never with a NaN or infinite number in them."""

import time
from collections.abc import Callable
from typing import Any

from mocokit import distributed
from mocokit.engine.background import BackgroundWriter
from mocokit.engine.checkpoint import copied_to_cpu, list_checkpoints, save_checkpoint
from mocokit.engine.health import NonFiniteLossError
from mocokit.engine.run_folder import RunFolder


class Saver:
    """Writer of a run's checkpoints and backbone; every method but `describe_newest` is called on every rank.

    Args:
        folder: The run folder.
        state: Returns the content of a checkpoint, except the step.
        export: Writes the backbone out of (a copied state, its step).
        find_bad: Returns the name of a tensor of this rank's state that became NaN or infinite, or None.
        save_minutes: Minutes between checkpoints.
        keep_last: Checkpoints to keep.
        start_step: Steps done before.

    """

    def __init__(
        self,
        *,
        folder: RunFolder,
        state: Callable[[], dict[str, Any]],
        export: Callable[[dict[str, Any], int], None],
        find_bad: Callable[[], str | None],
        save_minutes: float,
        keep_last: int,
        start_step: int,
    ) -> None:
        self.folder = folder
        self.state = state
        self.export = export
        self.find_bad = find_bad
        self.save_minutes = save_minutes
        self.keep_last = keep_last
        self._writer = BackgroundWriter()
        self._last_save_s = time.monotonic()
        self._newest_save = start_step

    def is_due(self) -> bool:
        """Return True, on all ranks, if the main rank's clock asks for a save. Never waits for a slow disk."""
        elapsed_s = time.monotonic() - self._last_save_s
        own = distributed.is_main() and elapsed_s > 60 * self.save_minutes and not self._writer.is_busy()
        return distributed.any_rank(own)

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after `step` steps, and the backbone beside it, while training goes on.

        The state is copied here. A save that is still being written is waited for, so there is one copy at most.

        Raises:
            NonFiniteLossError: On all ranks: a weight, a statistic or a key is NaN or infinite. Nothing is written.

        """
        self._last_save_s = time.monotonic()
        self._newest_save = step
        bad = [name for name in distributed.all_gather_objects(self.find_bad()) if name]
        if bad:
            raise NonFiniteLossError(step, self.describe_newest(), problem=bad[0])
        state = self.state()
        if not distributed.is_main():
            return
        self._writer.wait()
        state = copied_to_cpu({**state, "step": step})

        def write() -> None:
            """Write the checkpoint, then the backbone; runs in a thread of its own."""
            save_checkpoint(self.folder.checkpoints, state, step=step, keep_last=self.keep_last)
            if step == self._newest_save:  # else the next save waits, maybe in a process that will be killed soon
                self.export(state, step)

        self._writer.start(write)

    def export_again(self, step: int) -> None:
        """Write the backbone after `step` steps, which a killed process saved, but did not export."""
        state = self.state()
        if distributed.is_main():
            self.export(copied_to_cpu(state), step)

    def describe_newest(self) -> str:
        """Wait for the save that is being written; return a sentence that names the newest checkpoint."""
        self._writer.wait()
        kept = list_checkpoints(self.folder.checkpoints)
        return f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"

    def raise_if_failed(self) -> None:
        """Raise the error of a save that has failed since; don't wait for one that is being written."""
        self._writer.raise_if_failed()

    def finish(self) -> None:
        """Wait, on every rank, until all is on the disk: a rank that ends early makes torchrun end the others."""
        with distributed.work_alone():
            self._writer.wait()
        distributed.barrier()

    def close(self) -> None:
        """Wait for a save that is being written, and end the writer."""
        self._writer.close()
