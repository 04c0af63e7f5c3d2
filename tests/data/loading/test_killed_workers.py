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
from mocokit.data.loading.killed_workers import describe_death
from mocokit.data.loading.loader import build_loader

BATCH = 4
NUM_IMAGES = 200
ORDER = [list(range(start, start + BATCH)) for start in range(0, NUM_IMAGES, BATCH)]


class Numbers:
    """Batches that are their own positions; the first `times` times that image 41 is made, it kills its worker."""

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


@pytest.fixture(autouse=True)
def _default_signal_handler() -> Iterator[None]:
    """The default for SIGCHLD: another test's DataLoader may have left torch's handler in this process."""
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, earlier)


def _batches(views: Numbers, deaths: list[str]) -> Iterator[list[int]]:
    return (batch.tolist() for batch in build_loader(views, ORDER, num_workers=2, on_worker_death=deaths.append))


def _kill_one_of(workers: set[multiprocessing.Process]) -> None:
    pid = workers.pop().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def _children() -> set[multiprocessing.Process]:
    return set(multiprocessing.active_children())  # type: ignore[arg-type]


def test_killed_workers_are_replaced_and_no_batch_is_lost_or_comes_twice() -> None:
    before = _children()
    deaths = list[str]()
    batches = _batches(Numbers(), deaths)
    came = [next(batches)]
    for _ in range(2):
        _kill_one_of(_children() - before)
        time.sleep(0.3)  # torch's handler would raise an error here
        came += [next(batches) for _ in range(12)]
    assert [*came, *batches] == ORDER
    assert len(deaths) == 2
    assert "was killed, most likely for lack of memory: use fewer workers; new ones go on" in deaths[0]
    assert _children() == before, "all have ended"


@pytest.mark.slow
def test_two_deaths_at_the_same_images_end_the_run_in_one_line() -> None:
    deaths = list[str]()
    came = list[list[int]]()
    with pytest.raises(ChildProcessError, match=r"as one before it at these .*use fewer workers; .*`mocokit resume`"):
        came.extend(_batches(Numbers(times=9), deaths))
    assert came == ORDER[: len(came)]
    assert len(deaths) == 1


@pytest.mark.parametrize("error", [ValueError("100 images can't be used"), FileNotFoundError(2, "gone", "a.png")])
def test_an_error_of_the_data_reaches_the_caller_as_it_was_raised(error: OSError | ValueError) -> None:
    deaths = list[str]()
    with pytest.raises((OSError, ValueError), match=re.escape(str(error))) as raised:
        list(_batches(Failing(error), deaths))
    assert str(raised.value) == str(error), "without a traceback"
    assert "in make_batch" in raised.value.__notes__[0], "which is beside it"
    assert deaths == []


def test_full_shared_memory_is_an_error_of_one_line() -> None:
    before = _children()
    with pytest.raises(OSError, match=r"workers=2: /dev/shm is full: make it larger \(docker: --shm-size=8g\)"):
        next(_batches(Immense(), []))
    assert _children() == before, "all have ended"


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        (-signal.SIGBUS, "ended by a bus error"),
        (-signal.SIGSEGV, "ended by signal 11 (Segmentation fault)"),
        (3, "ended with code 3"),
    ],
)
def test_the_message_names_how_the_worker_ended(code: int, ended: str) -> None:
    assert describe_death(7, code).event == f"worker process 7 was {ended}"


def test_the_callers_own_signal_handler_stays() -> None:
    received = list[int]()
    signal.signal(signal.SIGCHLD, lambda number, frame: received.append(number))
    batches = _batches(Numbers(), [])
    next(batches)
    del batches
    assert received
