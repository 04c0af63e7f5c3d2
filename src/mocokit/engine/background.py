"""A writer thread for files that training need not wait for, one task at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """Runs a task beside the training thread, and raises the task's error there, at the next call."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Run `write` on the thread; wait for the previous task first.

        Raises:
            OSError: The previous task failed with it; `write` was not started.

        """
        self.wait()
        self._pending = self._thread.submit(write)

    def is_busy(self) -> bool:
        """Return True while a task runs."""
        return self._pending is not None and not self._pending.done()

    def raise_if_failed(self) -> None:
        """Raise the error of the task if it has ended with one; don't wait for it."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the task to end; raise its error, once."""
        pending = self._pending
        self._pending = None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the task, then end the thread; raise the task's error like `wait`."""
        self._thread.shutdown()
        self.wait()
