"""Loader workers that are killed, for lack of memory say, and replaced: the reader gets the same batches all the same.

torch raises an error wherever the main process happens to be, in the middle of an optimizer step say. Here a lost
worker shows when a batch is asked for, and new workers make all that the reader has not had.
"""

import logging
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from mocokit.data.loading.workers import Failure

LOGGER = logging.getLogger("mocokit")

B = TypeVar("B")
Positions = Any
"""Of one batch: whatever the loader's sampler gives for it."""

_SIGNAL_HANDLING = "torch.utils.data._utils.signal_handling"

_NO_ROOM = "unable to allocate shared memory"
"""What torch says."""
_GOES_ON = "a run goes on with `mocokit resume`"
_SHARED_MEMORY_FULL = "/dev/shm is full: make it larger (docker: --shm-size=8g), or use fewer workers"
_CAUSES = {
    -signal.SIGKILL: ("killed", "most likely for lack of memory: use fewer workers"),
    -signal.SIGBUS: ("ended by a bus error", f"most likely {_SHARED_MEMORY_FULL}"),
}


class LastingBatches(Generic[B]):
    """The batches at `order`, whatever becomes of the workers that make them.

    A worker that is lost while nothing came of what the last one was lost at ends this with a ChildProcessError, shared
    memory that is full with an OSError.

    Args:
        load: Gives a loader, with workers, of the batches at some positions.
        order: Positions of the images of each batch.
        on_loss: Told in a sentence what was lost.

    """

    def __init__(
        self,
        load: Callable[[Iterable[Positions]], Iterable[B | Failure]],
        order: Iterable[Positions],
        *,
        on_loss: Callable[[str], object] = LOGGER.warning,
    ) -> None:
        self.load = load
        self.order = order
        self.on_loss = on_loss

    def __iter__(self) -> Iterator[B]:
        asked = deque[Positions]()
        rest = iter(self.order)
        return self._each(self._start(asked, rest), asked, rest)

    def _each(self, started: "_Started[B]", asked: deque[Positions], rest: Iterator[Positions]) -> Iterator[B]:
        due = 0  # batches that the last loss held up
        while True:
            batches, workers = started
            try:
                for batch in batches:
                    if isinstance(batch, Failure):
                        raise batch.error()
                    asked.popleft()
                    due -= 1
                    yield batch
                return
            except Exception as error:
                lost = _lost_of(workers)
                if lost is None and _NO_ROOM not in str(error):
                    del batches, started  # ends the workers while whoever catches the error holds on to this frame
                    raise
                error.__traceback__ = None  # holds on to the loader
            del batches, started  # ends the other workers
            if lost is None:
                raise OSError(f"workers={len(workers)}: {_SHARED_MEMORY_FULL}; {_GOES_ON}")
            what, hint = _describe(lost.pid, lost.exitcode or 0, len(workers))
            if due > 0:
                raise ChildProcessError(f"{what}, as one before it at these images; {hint}; {_GOES_ON}")
            due = len(asked)
            self.on_loss(f"{what}, {hint}; new ones go on with the same batches")
            started = self._start(asked, rest)

    def _start(self, asked: deque[Positions], rest: Iterator[Positions]) -> "_Started[B]":
        """New workers, for what was asked for and did not come, then for the rest."""
        earlier = set(multiprocessing.active_children())
        handler = signal.getsignal(signal.SIGCHLD)
        batches = iter(self.load(_noting(tuple(asked), rest, asked)))
        if threading.current_thread() is threading.main_thread() and _is_torchs(signal.getsignal(signal.SIGCHLD)):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None or _is_torchs(handler) else handler)
        return batches, set(multiprocessing.active_children()) - earlier


_Started = tuple[Iterator[B | Failure], set[BaseProcess]]
"""The batches of a loader, and the workers that make them."""


def _noting(again: Iterable[Positions], rest: Iterator[Positions], asked: deque[Positions]) -> Iterator[Positions]:
    """Those that were asked for before, then the rest, noted in `asked` one by one."""
    yield from again
    for positions in rest:
        asked.append(positions)
        yield positions


def _is_torchs(handler: object) -> bool:
    """Whether it raises an error wherever the main thread is."""
    return getattr(handler, "__module__", "") == _SIGNAL_HANDLING


def _lost_of(workers: set[BaseProcess]) -> BaseProcess | None:
    """One that has ended, or is about to: an error of its pipe may come first."""
    if workers:
        wait([worker.sentinel for worker in workers], timeout=1.0)
    return next((worker for worker in workers if not worker.is_alive()), None)


def _describe(pid: int | None, code: int, num_workers: int) -> tuple[str, str]:
    """(what happened, what to do)"""
    ended = f"ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with code {code}"
    what, hint = _CAUSES.get(code, (ended, "most likely a library crashed: 0 workers show where"))
    return f"workers={num_workers}: worker process {pid} was {what}", hint
