import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from mocokit.data.batch import Each
from mocokit.data.loading.loader import build_loader
from mocokit.data.turns import _Wait

WORKERS = 2
BATCH = 8
ORDER = [list(range(start, start + BATCH)) for start in range(0, 1000, BATCH)]


@dataclass
class Counted:
    """Images that take a while; says how many were made in all workers."""

    image_s: float
    made: Tensor = field(default_factory=lambda: torch.zeros(1000, dtype=torch.uint8).share_memory_())

    def make_batch(self, positions: Sequence[int], each: Each) -> Tensor:
        return torch.tensor(list(each(self._make, positions)))

    def _make(self, index: int) -> int:
        time.sleep(self.image_s)
        self.made[index] = 1
        return index

    @property
    def count(self) -> int:
        return int(self.made.sum())


def _batches(views: Counted, *, on_loss: Callable[[str], object] = print) -> Iterator[Tensor]:
    return iter(build_loader(views, ORDER, num_workers=WORKERS, in_turns=True, on_loss=on_loss))


def _made_during(views: Counted, seconds: float) -> int:
    before = views.count
    time.sleep(seconds)
    return views.count - before


def test_batches_come_whole_and_in_order() -> None:
    views = Counted(image_s=0.0)
    assert [batch.tolist() for batch in _batches(views)] == ORDER


def test_workers_pause_while_the_step_works() -> None:
    views = Counted(image_s=0.01)
    batches = _batches(views)
    for _ in range(6):
        next(batches)
        assert _made_during(views, 0.5) <= WORKERS, "each worker may end the image that it was at"


def test_a_step_that_waits_too_long_is_served_meanwhile() -> None:
    views = Counted(image_s=0.01)
    batches = _batches(views)
    for _ in range(20):  # 8 images of 10 ms by 2 workers: all of the time is spent waiting
        next(batches)
    assert _made_during(views, 0.5) > 2 * WORKERS


def test_one_long_wait_decides_nothing_where_steps_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("mocokit.data.turns.time.perf_counter", lambda: clock[0])
    wait = _Wait()

    def step(waited_s: float, worked_s: float) -> bool:
        wait.starts()
        clock[0] += waited_s
        wait.ends()
        clock[0] += worked_s
        return wait.is_too_long

    assert not step(9.0, 1.0), "workers start"
    assert not any(step(0.15, 1.0) for _ in range(100))
    assert not step(0.5, 1.0)
    assert not any(step(0.15, 1.0) for _ in range(10))
    assert not step(0.5, 1.0), "the first was made up for"
    assert step(0.5, 1.0), "nothing came between to make up for it"
    assert step(0.0, 9.0), "for good"


def test_a_worker_killed_at_its_turn_is_replaced_and_holds_up_nobody() -> None:
    before = set(multiprocessing.active_children())
    losses = list[str]()
    batches = _batches(Counted(image_s=0.001), on_loss=losses.append)
    first = next(batches)
    time.sleep(0.1)  # all wait for their turn
    pid = (set(multiprocessing.active_children()) - before).pop().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert [batch.tolist() for batch in (first, *batches)] == ORDER
    assert len(losses) == 1


def test_leaving_early_ends_the_workers() -> None:
    batches = _batches(Counted(image_s=0.01))
    before = set(multiprocessing.active_children())
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == WORKERS
    time.sleep(0.1)  # all wait for their turn
    start = time.perf_counter()
    del batches
    assert not any(worker.is_alive() for worker in workers)
    assert time.perf_counter() - start < 3, "torch ends a worker that does not hear it after 5 seconds"
