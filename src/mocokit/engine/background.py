"""Work that training need not wait for: one thread, one task at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """Writes files beside the training thread; what goes wrong there is raised here, at the next call."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Let `write` run on the thread, once the former task is done; waits for that one.

        Raises:
            OSError: The former task failed so, and `write` was not started.

        """
        self.wait()
        self._pending = self._thread.submit(write)

    def is_busy(self) -> bool:
        """Whether a task is still on its way."""
        return self._pending is not None and not self._pending.done()

    def raise_if_failed(self) -> None:
        """Raise what the task raised, if it has ended; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the task to end; raises what it raised, once."""
        pending = self._pending
        self._pending = None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let the task end, then the thread; raises like `wait`."""
        self._thread.shutdown()
        self.wait()
