"""Batches in a fixed order that any step can be entered at: the resumable sampler, workers and pinned memory.

Step s belongs to epoch s // steps_per_epoch. The order of an epoch depends on (seed, epoch) alone, so starting at
step s gives the very batches that an uninterrupted run would see from there.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from mocokit.data.pipelines import fast_views, warm_up
from mocokit.data.views import PlainViews, TwoViews, ViewBatch
from mocokit.data.workers import as_is, obey_parent_alone
from mocokit.randomness import Purpose, permutation


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
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start_step, self.total_steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = permutation(self.seed, Purpose.EPOCH_ORDER, self.num_images, epoch)
            first = step % per_epoch * self.global_batch_size
            rows = order[first + self.own_rows.start : first + self.own_rows.stop]
            yield [(epoch, int(index)) for index in rows]


def build_view_loader(
    views: TwoViews, order: BatchOrder, *, num_workers: int, num_threads: int = 1, pin_memory: bool = False
) -> Iterable[ViewBatch]:
    """Batches of `views` in `order`.

    Args:
        views: Makes a batch.
        order: Of the images.
        num_workers: Processes that work ahead; 0: the calling process makes each batch when it is asked for.
        num_threads: Of the calling process, with 0 workers.
        pin_memory: Hand over batches in page-locked memory.

    """
    if views.pipeline is fast_views:
        warm_up()  # before workers are forked, which then have the machine code too
    if not num_workers:
        return ThreadedBatches(views, order, num_threads=num_threads, pin_memory=pin_memory)
    return DataLoader(
        views,
        batch_sampler=order,
        collate_fn=as_is,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4,
        worker_init_fn=obey_parent_alone,
    )


class ThreadedBatches:
    """Batches made by threads of the calling process while it waits for them.

    What trains on a CPU has no use for workers of its own cores: training threads wait for each other at every
    barrier, so that a step slows down by more than the workers get done meanwhile. Decoding and the machine code
    of the views release the interpreter's lock.

    Args:
        views: Makes a batch.
        order: Of the images.
        num_threads: That share a batch.
        pin_memory: Hand over batches in page-locked memory.

    """

    def __init__(self, views: TwoViews, order: BatchOrder, *, num_threads: int, pin_memory: bool) -> None:
        self.views, self.order, self.num_threads, self.pin_memory = views, order, num_threads, pin_memory

    def __iter__(self) -> Iterator[ViewBatch]:
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="views") as threads:
            for positions in self.order:
                batch = self.views.make_batch(positions, threads.map)
                yield batch.pin_memory() if self.pin_memory else batch


def build_plain_loader(
    views: PlainViews, indices: Sequence[int], *, batch_size: int, num_workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Loader of unaugmented images in the order of `indices`."""
    batches = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
    return DataLoader(
        views,
        batch_sampler=batches,
        collate_fn=as_is,
        num_workers=num_workers,
        worker_init_fn=obey_parent_alone,
    )
