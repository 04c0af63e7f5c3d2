"""How a loader's worker process lives, hands over what it made, and dies."""

import os
import signal
import threading
import traceback
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import torch
from torch.utils.data import Dataset

from mocokit.data.batch import BatchMaker, Each

T = TypeVar("T")
B = TypeVar("B")


class Failure(NamedTuple):
    """An error that a user can mend, on its way from a worker; torch would make two tracebacks its message."""

    kind: type[OSError] | type[ValueError]
    message: str
    trace: str
    """In the worker."""

    def error(self) -> Exception:
        """The error, to be raised in the main process."""
        error = self.kind(self.message)
        error.add_note(f"in a loader's worker:\n{self.trace}")
        return error


class InWorker(Dataset[B | Failure], Generic[B]):
    """Batches for a loader's worker to make.

    Args:
        views: Makes a batch.
        each: How it goes through the images.

    """

    def __init__(self, views: BatchMaker[B], each: Each) -> None:
        self.views = views
        self.each = each

    def __getitems__(self, positions: Sequence[Any]) -> B | Failure:
        """A whole batch, or why there is none; called by torch's DataLoader in a worker."""
        try:
            return self.views.make_batch(positions, self.each)
        except (OSError, ValueError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            return Failure(kind, str(error), traceback.format_exc())


def obey_parent_alone(_worker: int) -> None:
    """Start a worker: one thread of work, and an end when the main process says so or is gone.

    Ctrl-C and SIGTERM reach the whole process group, but the main process ends the run: a worker that died of them
    would break its last step before it can save. A worker whose main process was killed would wait for ever to hand
    over what it made.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


def as_is(batch: T) -> T:
    """A `collate_fn` for data sets that make whole batches."""
    return batch
