"""Code of a loader's worker process: its setup, its work, its errors and its end."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import Dataset

from mocokit.data.batch import BatchMaker

T = TypeVar("T")
B = TypeVar("B")


class WorkerError(NamedTuple):
    """An error that a user can fix, sent from a worker to the main process in place of a batch.

    Raised in the worker, it would arrive with the worker's traceback as its message: torch puts it there.
    """

    kind: type[OSError] | type[ValueError]
    message: str
    trace: str
    """Traceback in the worker."""

    def to_exception(self) -> Exception:
        """Return the exception to raise in the main process, with the worker's traceback as a note."""
        error = self.kind(self.message)
        error.add_note(f"in a loader's worker:\n{self.trace}")
        return error


class BatchDataset(Dataset[B | WorkerError], Generic[B]):
    """Data set of torch's DataLoader that makes a whole batch at a time.

    Args:
        views: Makes a batch.

    """

    def __init__(self, views: BatchMaker[B]) -> None:
        self.views = views

    def __getitems__(self, positions: Sequence[Any]) -> B | WorkerError:
        """Return the batch of the images at `positions`, or the error; torch's DataLoader calls this in a worker."""
        try:
            return self.views.make_batch(positions, map)
        except (OSError, ValueError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            return WorkerError(kind, str(error), traceback.format_exc())


def init_worker(_worker: int) -> None:
    """Prepare a worker process: one thread, and an end only when the main process says so or is gone.

    Ctrl-C and SIGTERM reach all processes of the group. The main process then finishes its step and saves, and needs
    its workers until then. So a worker ignores Ctrl-C and obeys only a SIGTERM from the main process. A worker whose
    main process was killed would wait forever to hand over its batch. So a thread checks every second that it is alive.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        # Without sigtimedwait, which says who sent a signal, SIGTERM ends the worker (macOS).
        how = signal.SIG_BLOCK if hasattr(signal, "sigtimedwait") else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, {signal.SIGTERM})  # `hold_signals` blocked it while this process started
    threading.Thread(target=_end_with_main, args=(multiprocessing.parent_process(), os.getppid()), daemon=True).start()


def _end_with_main(main: Any, starter: int) -> None:
    """End this process when the main process is gone or, where the system can tell, sends SIGTERM.

    Args:
        main: The main process, as multiprocessing knows it.
        starter: Process that started this one: the main process, or a fork server. The main process is watched this
            way too, because the younger siblings of a forked worker hold open the pipe that tells of its end.

    """
    is_child_of_main = starter == main.pid
    while main.is_alive() and (not is_child_of_main or os.getppid() == starter):
        if not hasattr(signal, "sigtimedwait"):
            time.sleep(1.0)
            continue
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == main.pid:
            break
    os._exit(0)


def identity(batch: T) -> T:
    """Return `batch`; the `collate_fn` for data sets that make whole batches."""
    return batch
