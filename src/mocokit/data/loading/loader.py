"""Load batches in a fixed order, from any step on, with worker processes or threads.

Step s belongs to epoch s // steps_per_epoch. The order of an epoch depends on (seed, epoch) alone. So a run that starts
at step s gets the same batches as a run that was never interrupted.
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
from mocokit.data.loading.killed_workers import ResilientBatches
from mocokit.data.loading.socket_folder import choose_socket_folder
from mocokit.data.loading.start_methods import preload_fork_server
from mocokit.data.loading.workers import BatchDataset, WorkerError, identity, init_worker
from mocokit.data.sources.shards import is_url
from mocokit.randomness import Purpose, permutation

LOGGER = logging.getLogger("mocokit")

B = TypeVar("B")


def steps_per_epoch(num_images: int, global_batch_size: int) -> int:
    """Return the number of whole global batches in an epoch.

    The remaining images are dropped, as in the official code (drop_last); they are different ones in each epoch.

    Raises:
        ValueError: The data set is smaller than one batch.

    """
    if num_images < global_batch_size:
        raise ValueError(
            f"data.global_batch_size={global_batch_size}: larger than the data set of {num_images} images; "
            f"use at most {num_images}"
        )
    return num_images // global_batch_size


@dataclass(frozen=True, kw_only=True)
class BatchOrder(Sampler[list[tuple[int, int]]]):
    """Sampler of a rank's images: for each step from `start_step` on, the (epoch, image index) of each row.

    Args:
        num_images: Size of the data set.
        global_batch_size: Images per step over all ranks.
        own_rows: This rank's rows of the global batch.
        start_step: First step.
        total_steps: Last step plus one.
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
    """Sampler for training with labels: for each step, the (epoch, image index) of each row.

    Every epoch contains all images, so its last batch may be smaller. A remainder of one image joins the batch before
    it, because BatchNorm needs two images.

    Args:
        indices: Images to train on.
        batch_size: Images per step.
        epochs: Number of passes over `indices`.
        seed: Seed of the epoch orders.
        part: Which part of each batch to yield: 0 .. num_parts-1.
        num_parts: Consecutive parts that each batch is cut into, of sizes that differ by one at most.

    """

    indices: tuple[int, ...]
    batch_size: int
    epochs: int
    seed: int
    part: int = 0
    num_parts: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return max(1, -(-(len(self.indices) - 1) // self.batch_size))

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        bounds = [step * self.batch_size for step in range(self.steps_per_epoch)] + [len(self.indices)]
        for epoch in range(self.epochs):
            order = permutation(self.seed, Purpose.EPOCH_ORDER, len(self.indices), epoch)
            for start, stop in itertools.pairwise(bounds):
                size = stop - start
                first = start + self.part * size // self.num_parts
                last = start + (self.part + 1) * size // self.num_parts
                yield [(epoch, self.indices[row]) for row in order[first:last]]


def build_loader(
    views: BatchMaker[B],
    order: Iterable[Sequence[Any]],
    *,
    num_workers: int,
    num_threads: int | None = None,
    pin_memory: bool = False,
    on_worker_death: Callable[[str], object] = LOGGER.warning,
) -> Iterable[B]:
    """Return the batches that `views` makes of the images in `order`.

    Args:
        views: Makes a batch.
        order: Positions of the images of each batch.
        num_workers: Worker processes, which work ahead. 0: threads of the calling process make each batch on request.
        num_threads: Threads with 0 workers; None: as many as `own_cores`.
        pin_memory: Return batches in page-locked memory. Not needed for `on_device`, which has page-locked buffers.
        on_worker_death: Called with a sentence for each worker that died and was replaced (see killed_workers.py).

    """
    if not num_workers:
        return ThreadedBatches(views, order, num_threads=num_threads or own_cores())

    def load(order: Iterable[Sequence[Any]]) -> DataLoader[B | WorkerError]:
        """Return a loader with new workers for the batches at `order`."""
        choose_socket_folder()
        preload_fork_server()
        give_back_freed_memory()  # workers that are forked next share all memory of this process
        return DataLoader(
            BatchDataset(views),
            batch_sampler=cast(Sampler[list[Any]], order),
            collate_fn=identity,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=2,
            worker_init_fn=init_worker,
        )

    return ResilientBatches(load, order, on_worker_death=on_worker_death)


class ThreadedBatches(Generic[B]):
    """Batches made on request by threads of the calling process.

    Threads start at once, which suits evaluations of a few seconds. Decoding and the compiled augmentation release the
    interpreter lock, but the Python code between them does not: for training, worker processes are faster.

    Args:
        views: Makes a batch.
        order: Positions of the images of each batch.
        num_threads: Number of threads that share the images of a batch.

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
    """Return `indices` in order, cut into batches; the last batch may be smaller."""
    return [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]


MAX_WORKERS = 16
"""Largest number of loader processes or threads that is chosen automatically."""


def count_cores() -> int:
    """Return the number of cores that this process may use; where the system does not tell that, all cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def own_cores() -> int:
    """Return the number of cores per rank of this machine, at least 1 and at most MAX_WORKERS."""
    local_ranks = 1 if _has_cores_of_its_own() else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_WORKERS, count_cores() // local_ranks))


def _has_cores_of_its_own() -> bool:
    """Return True if the launcher has given this process a part of its own cores (numactl, taskset, NUMA binding)."""
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is None:
        return False
    try:
        return bool(affinity(0) < affinity(os.getppid()))  # a strict subset
    except OSError:  # the launcher is in another container, or has ended
        return False


def choose_workers(asked: int, *, threads_suffice: bool = False, location: str = "") -> int:
    """Return the number of loader processes.

    Args:
        asked: The setting; -1 chooses automatically: one process per own core, or none if threads suffice.
        threads_suffice: The caller needs few batches, so threads suffice unless images come over a network.
        location: Where the images are.

    """
    if asked >= 0:
        return asked
    return 0 if threads_suffice and not is_url(location) else own_cores()
