import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from mocokit.data.batch import Each, empty_pixels
from mocokit.data.loading.killed_workers import _describe
from mocokit.data.loading.loader import build_loader

BATCH = 4
NUM_IMAGES = 200
ORDER = [list(range(start, start + BATCH)) for start in range(0, NUM_IMAGES, BATCH)]


class Numbers:
    """Batches that are their own positions; some of the times that image 41 is made, it ends its worker."""

    def __init__(self, number: signal.Signals = signal.SIGKILL, *, times: int = 0) -> None:
        self.number = number
        self.times_left = torch.tensor(times).share_memory_()

    def make_batch(self, positions: Sequence[int], each: Each) -> Tensor:
        return torch.tensor(list(each(self.make, positions)))

    def make(self, index: int) -> int:
        time.sleep(0.001)
        if index == 41 and self.times_left > 0:
            self.times_left -= 1
            os.kill(os.getpid(), self.number)
        return index


class Failing(Numbers):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def make_batch(self, positions: Sequence[int], each: Each) -> Tensor:
        raise self.error


class Immense(Numbers):
    def make_batch(self, positions: Sequence[int], each: Each) -> Tensor:
        return empty_pixels(1 << 50)


def _batches(views: Numbers, losses: list[str]) -> Iterator[list[int]]:
    return (batch.tolist() for batch in build_loader(views, ORDER, num_workers=2, on_loss=losses.append))


def _kill_one_of(workers: set[multiprocessing.Process]) -> None:
    pid = workers.pop().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def _children() -> set[multiprocessing.Process]:
    return set(multiprocessing.active_children())  # type: ignore[arg-type]


@pytest.mark.slow
def test_killed_workers_are_replaced_and_no_batch_is_lost_or_comes_twice() -> None:
    before = _children()
    losses = list[str]()
    batches = _batches(Numbers(), losses)
    came = [next(batches)]
    for _ in range(2):
        _kill_one_of(_children() - before)
        time.sleep(0.3)  # torch's handler would raise an error here
        came += [next(batches) for _ in range(12)]
    assert [*came, *batches] == ORDER
    assert len(losses) == 2
    assert "was killed, most likely for lack of memory: use fewer workers; new ones go on" in losses[0]
    assert _children() == before, "all have ended"


@pytest.mark.slow
def test_an_image_that_always_ends_its_worker_ends_the_loader() -> None:
    losses = list[str]()
    came = list[list[int]]()
    with pytest.raises(ChildProcessError, match=r"as one before it at these .*use fewer workers; .*`mocokit resume`"):
        came.extend(_batches(Numbers(times=9), losses))
    assert came == ORDER[: len(came)]
    assert len(losses) == 1


@pytest.mark.parametrize("error", [ValueError("100 images can't be used"), FileNotFoundError(2, "gone", "a.png")])
def test_an_error_of_the_data_comes_as_it_was_raised(error: OSError | ValueError) -> None:
    losses = list[str]()
    with pytest.raises((OSError, ValueError), match=re.escape(str(error))) as raised:
        list(_batches(Failing(error), losses))
    assert str(raised.value) == str(error), "without a traceback"
    assert "in make_batch" in raised.value.__notes__[0], "which is beside it"
    assert losses == []


def test_full_shared_memory_is_named() -> None:
    with pytest.raises(OSError, match=r"workers=2: /dev/shm is full: make it larger \(docker: --shm-size=8g\)"):
        next(_batches(Immense(), []))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-signal.SIGBUS, "ended by a bus error"),
        (-signal.SIGSEGV, "ended by signal 11 (Segmentation fault)"),
        (3, "ended with code 3"),
    ],
)
def test_what_happened_is_said(code: int, said: str) -> None:
    assert _describe(7, code, 2)[0] == f"workers=2: worker process 7 was {said}"


def test_a_handler_of_the_callers_own_stays() -> None:
    told = list[int]()
    earlier = signal.signal(signal.SIGCHLD, lambda number, frame: told.append(number))
    try:
        batches = _batches(Numbers(), [])
        next(batches)
        del batches
        assert told
    finally:
        signal.signal(signal.SIGCHLD, earlier)
