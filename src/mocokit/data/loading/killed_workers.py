"""Go on with new loader workers when one was killed, for example for lack of memory, without losing a batch.

torch installs a handler for the signal SIGCHLD that raises an error wherever the main process happens to be, possibly
in the middle of an optimizer step. Here the previous handler is put back, so that the error is raised when the next
batch is requested. New workers then make all batches that were not delivered. (torch installs its handler once in a
process: if other code used a DataLoader with workers before, torch's handler is the previous one, and stays.)
"""

import contextlib
import logging
import multiprocessing
import pickle
import signal
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NamedTuple, TypeVar

from mocokit.data.loading.start_methods import hold_signals
from mocokit.data.loading.workers import WorkerError

LOGGER = logging.getLogger("mocokit")

B = TypeVar("B")

Positions = Any
"""Positions of the images of one batch, as the loader's sampler gives them."""

_NO_SHARED_MEMORY = "unable to allocate shared memory"
"""Part of torch's error message when /dev/shm is full."""

_SHARED_MEMORY_FULL = "/dev/shm is full: make it larger (docker: --shm-size=8g), or use fewer workers"
_HOW_TO_GO_ON = "a run goes on with `mocokit resume`"
_CAUSES = {
    "SIGKILL": ("killed", "most likely for lack of memory: use fewer workers"),
    "SIGBUS": ("ended by a bus error", f"most likely {_SHARED_MEMORY_FULL}"),
}
"""Signal -> (how the worker ended, likely reason and remedy)."""
_NOT_STARTED = (
    "most likely it could not start, and its own message says why: a script that trains needs "
    '`if __name__ == "__main__":` around its calls, and a class of yours must be in a module, not in a notebook; '
    "or use 0 workers"
)
"""Reason and remedy for a process that must import the program again, where workers are not forked."""

_NOT_SENT = (
    "a source that keeps files open after read() needs a __getstate__ that leaves them out, and its class must be at "
    "the top of a module; or use 0 workers"
)


class WorkerDeath(NamedTuple):
    """Description of a dead worker."""

    event: str
    """The process and how it ended."""
    hint: str
    """Likely reason and remedy."""


class ResilientBatches(Generic[B]):
    """The batches at `order`, delivered in order even if workers are killed.

    When a worker dies, some requested batches are not delivered yet. If another worker dies before all of these are
    delivered, iteration raises ChildProcessError: the same images seem to kill every worker. If shared memory is full,
    it raises OSError. If workers are not forked and `load`'s data set can't be pickled, it raises ValueError.

    Args:
        load: Returns a loader with workers for the batches at some positions.
        order: Positions of the images of each batch.
        on_worker_death: Called with a sentence for each worker that died and was replaced.

    """

    def __init__(
        self,
        load: Callable[[Iterable[Positions]], Iterable[B | WorkerError]],
        order: Iterable[Positions],
        *,
        on_worker_death: Callable[[str], object] = LOGGER.warning,
    ) -> None:
        self.load = load
        self.order = order
        self.on_worker_death = on_worker_death

    def __iter__(self) -> Iterator[B]:
        undelivered = deque[Positions]()  # requested by a loader, in order
        rest = iter(self.order)
        batches, workers = self._start(undelivered, rest)  # at once: the caller may iterate in another thread
        return self._deliver(batches, workers, undelivered, rest)

    def _deliver(
        self,
        batches: Iterator[B | WorkerError],
        workers: set[BaseProcess],
        undelivered: deque[Positions],
        rest: Iterator[Positions],
    ) -> Iterator[B]:
        num_held_up = 0  # undelivered batches that had been requested when the last worker died
        while (result := _next_result(batches, workers)) is not None:
            if isinstance(result, WorkerError):
                del batches  # ends the workers even if the caller keeps the traceback, and with it this frame
                raise result.to_exception()
            if isinstance(result, WorkerDeath):
                del batches  # ends the other workers
                event = f"workers={len(workers)}: {result.event}"
                if num_held_up > 0:
                    raise ChildProcessError(
                        f"{event}, as one before it at these images; {result.hint}; {_HOW_TO_GO_ON}"
                    )
                num_held_up = len(undelivered)
                self.on_worker_death(f"{event}, {result.hint}; new ones go on with the same batches")
                batches, workers = self._start(undelivered, rest)
                continue
            undelivered.popleft()
            num_held_up -= 1
            yield result

    def _start(
        self, undelivered: deque[Positions], rest: Iterator[Positions]
    ) -> tuple[Iterator[B | WorkerError], set[BaseProcess]]:
        """Start workers for the undelivered batches and the rest; return their batches and the processes."""
        children_before = set(multiprocessing.active_children())
        with _same_child_handler(), hold_signals(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # torch's; it then raises the error
            try:
                batches = iter(self.load(_remember(tuple(undelivered), rest, undelivered)))
            except (BrokenPipeError, EOFError) as error:  # it, or the fork server, ended before it had started
                raise ChildProcessError(f"a worker process ended while it was started, {_NOT_STARTED}") from error
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                if "pickle" not in str(error) and "local object" not in str(error):
                    raise
                raise ValueError(f"data: can't be sent to worker processes ({error}); {_NOT_SENT}") from error
        return batches, set(multiprocessing.active_children()) - children_before


@contextlib.contextmanager
def _same_child_handler() -> Iterator[None]:
    """Context manager that puts the handler of SIGCHLD back, for which torch sets its own in the main thread."""
    number = getattr(signal, "SIGCHLD", None)  # missing on Windows
    handler = signal.getsignal(number) if number is not None else None
    yield
    if number is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler or signal.SIG_DFL)


def _remember(
    again: Iterable[Positions], rest: Iterator[Positions], undelivered: deque[Positions]
) -> Iterator[Positions]:
    """Yield `again`, then `rest`; append each of `rest` to `undelivered` when it is requested."""
    yield from again
    for positions in rest:
        undelivered.append(positions)
        yield positions


def _next_result(batches: Iterator[B | WorkerError], workers: set[BaseProcess]) -> B | WorkerError | WorkerDeath | None:
    """Return the next batch, the error or the death that came instead, or None at the end.

    Errors are returned, not raised: the frames in torch's traceback would keep the loader and its workers alive.
    """
    try:
        return next(batches, None)
    except (RuntimeError, OSError, EOFError) as error:  # torch's own check of its workers, or a broken pipe
        dead = _find_dead(workers)
        if dead is None and _NO_SHARED_MEMORY not in str(error):
            raise
        trace = traceback.format_exc()
        error.__traceback__ = None  # torch's frames and the error refer to each other: only the collector frees both
    if dead is not None:
        return describe_death(dead.pid, dead.exitcode or 0)
    return WorkerError(OSError, f"workers={len(workers)}: {_SHARED_MEMORY_FULL}; {_HOW_TO_GO_ON}", trace)


def _find_dead(workers: set[BaseProcess]) -> BaseProcess | None:
    """Return a worker that has ended; wait up to 1 s, because the error of its pipe may come before its end."""
    if workers:
        wait([worker.sentinel for worker in workers], timeout=1.0)
    return next((worker for worker in workers if not worker.is_alive()), None)


def describe_death(pid: int | None, exit_code: int) -> WorkerDeath:
    """Return how a worker process ended, and the likely reason and remedy."""
    name = next((number.name for number in signal.Signals if number == -exit_code), "")
    if name in _CAUSES:
        ended, hint = _CAUSES[name]
    else:
        starts_anew = multiprocessing.get_start_method() != "fork"
        hint = _NOT_STARTED if starts_anew and exit_code == 1 else "most likely a library crashed: 0 workers show where"
        ended = f"ended with code {exit_code}"
        if exit_code < 0:
            ended = f"ended by signal {-exit_code} ({signal.strsignal(-exit_code)})"
    return WorkerDeath(f"worker process {pid} was {ended}", hint)
