"""How a loader's worker process lives and dies."""

import os
import signal
import threading
from typing import TypeVar

import cv2
import torch

T = TypeVar("T")


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
