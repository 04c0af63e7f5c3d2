"""Batches in a fixed order that any step can be entered at: the resumable sampler, workers and pinned memory.

Step s belongs to epoch s // steps_per_epoch. The order of an epoch depends on (seed, epoch) alone, so starting at
step s gives the very batches that an uninterrupted run would see from there.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
from torch.utils.data import DataLoader, Sampler

from mocokit.data.batch import BatchMaker
from mocokit.data.loading.allocator import give_back_freed_memory
from mocokit.data.loading.killed_workers import LastingBatches
from mocokit.data.loading.workers import Failure, InWorker, as_is, obey_parent_alone
from mocokit.data.sources.shards import is_url
from mocokit.data.turns import BatchesInTurns, Turns
from mocokit.randomness import Purpose, permutation

LOGGER = logging.getLogger("mocokit")

B = TypeVar("B")


def steps_per_epoch(num_images: int, global_batch_size: int) -> int:
    """Whole global batches in an epoch; the rest is dropped, as officially (drop_last), and differs every epoch.

    Raises:
        ValueError: Not even one batch fits.

    """
    if num_images < global_batch_size:
        raise ValueError(
            f"data.global_batch_size={global_batch_size}: larger than the data set of {num_images} images; "
            f"use at most {num_images}"
        )
    return num_images // global_batch_size


@dataclass(frozen=True, kw_only=True)
class BatchOrder(Sampler[list[tuple[int, int]]]):
    """For each step from `start_step` on: the (epoch, image index) of each of this rank's rows.

    Args:
        num_images: Size of the data set.
        global_batch_size: B.
        own_rows: This rank's rows of the global batch.
        start_step: First step.
        total_steps: One past the last step.
        seed: Seed of the epoch orders.

    """

    num_images: int
    global_batch_size: int
    own_rows: range
    start_step: int
    total_steps: int
    seed: int

    def __len__(self) -> int:
        return self.total_steps - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = steps_per_epoch(self.num_images, self.global_batch_size)
        epoch = -1
        order = np.empty(0, np.int64)
        for step in range(self.start_step, self.total_steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = permutation(self.seed, Purpose.EPOCH_ORDER, self.num_images, epoch)
            first = step % per_epoch * self.global_batch_size
            rows = order[first + self.own_rows.start : first + self.own_rows.stop]
            yield [(epoch, int(index)) for index in rows]


@dataclass(frozen=True, kw_only=True)
class WholeEpochs(Sampler[list[tuple[int, int]]]):
    """For each step: the (epoch, image index) of each row; every epoch holds all images, as supervised training wants.

    The last batch of an epoch is smaller. A rest of one image joins the batch before it, since BatchNorm needs two.

    Args:
        indices: Images to train on.
        batch_size: Images of a step.
        epochs: Passes over `indices`.
        seed: Seed of the epoch orders.

    """

    indices: tuple[int, ...]
    batch_size: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return max(1, -(-(len(self.indices) - 1) // self.batch_size))

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        bounds = [step * self.batch_size for step in range(self.steps_per_epoch)] + [len(self.indices)]
        for epoch in range(self.epochs):
            order = permutation(self.seed, Purpose.EPOCH_ORDER, len(self.indices), epoch)
            for start, stop in itertools.pairwise(bounds):
                yield [(epoch, self.indices[row]) for row in order[start:stop]]


def build_loader(
    views: BatchMaker[B],
    order: Iterable[Sequence[Any]],
    *,
    num_workers: int,
    num_threads: int | None = None,
    pin_memory: bool = False,
    in_turns: bool = False,
    on_loss: Callable[[str], object] = LOGGER.warning,
) -> Iterable[B]:
    """Batches of `views` in `order`.

    Args:
        views: Makes a batch.
        order: Positions of the images of each batch.
        num_workers: Processes that work ahead; 0: the calling process makes each batch when it is asked for.
        num_threads: Of the calling process, with 0 workers; None: its cores.
        pin_memory: Let workers' batches be handed over in page-locked memory; `on_device` has its own.
        in_turns: Spare the calling process's step, which runs on the workers' cores (see data/turns.py).
        on_loss: Told of each worker that was killed and replaced (see data/loading/killed_workers.py).

    """
    if not num_workers:
        return ThreadedBatches(views, order, num_threads=num_threads or own_cores())
    turns = Turns() if in_turns else None

    def load(order: Iterable[Sequence[Any]]) -> DataLoader[B | Failure]:
        """Batches at `order`, by new workers."""
        give_back_freed_memory()  # of steps before; the workers are forked next
        return DataLoader(
            InWorker(views, turns.each if turns else map),
            batch_sampler=cast(Sampler[list[Any]], order),
            collate_fn=as_is,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=2,
            worker_init_fn=obey_parent_alone,
        )

    batches = LastingBatches(load, order, on_loss=on_loss)
    return BatchesInTurns(batches, turns) if turns else batches


class ThreadedBatches(Generic[B]):
    """Batches made by threads of the calling process while it waits for them.

    Nothing has to be started, which suits evaluations of a few seconds. Decoding and the machine code of the views
    release the interpreter's lock, but what is left between takes turns: for runs, workers make more.

    Args:
        views: Makes a batch.
        order: Positions of the images of each batch.
        num_threads: That share a batch.

    """

    def __init__(self, views: BatchMaker[B], order: Iterable[Sequence[Any]], *, num_threads: int) -> None:
        self.views = views
        self.order = order
        self.num_threads = num_threads

    def __iter__(self) -> Iterator[B]:
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="views") as threads:
            for positions in self.order:
                yield self.views.make_batch(positions, threads.map)


def in_batches(indices: Sequence[int], batch_size: int) -> list[list[int]]:
    """`indices` in order, in batches; the last may be smaller."""
    return [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]


MAX_WORKERS = 16


def own_cores() -> int:
    """Cores of this machine for each of its ranks, at least 1 and at most MAX_WORKERS."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // local_ranks))


def choose_workers(asked: int, *, threads_suffice: bool = False, location: str = "") -> int:
    """Loader processes: as many as asked for; -1: none where threads suffice, on local images, else the own cores."""
    if asked >= 0:
        return asked
    return 0 if threads_suffice and not is_url(location) else own_cores()  # a network may make anyone wait
