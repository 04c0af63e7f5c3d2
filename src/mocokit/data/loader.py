"""Batches in a fixed order that any step can be entered at: the resumable sampler, workers and pinned memory.

Step s belongs to epoch s // steps_per_epoch. The order of an epoch depends on (seed, epoch) alone, so starting at
step s gives the very batches that an uninterrupted run would see from there.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mocokit.data.pipelines import warm_up
from mocokit.data.views import PlainViews
from mocokit.data.workers import as_is, obey_parent_alone, obey_parent_in_the_background
from mocokit.randomness import Purpose, permutation

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
        epoch, order = -1, np.empty(0, np.int64)
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


def build_view_loader(
    views: Dataset[B],
    order: Sampler[list[tuple[int, int]]],
    *,
    num_workers: int,
    pin_memory: bool,
    trains_on_cpu: bool = False,
) -> DataLoader[B]:
    """Loader of `views` in `order`; with 0 workers the calling process does the work.

    With `trains_on_cpu` the workers step back for the training threads, which would otherwise wait for each other at
    every barrier: they then make views while the step waits for a batch, and the whole is up to half as fast again.
    """
    warm_up()  # before workers are forked, which then have the machine code too
    return DataLoader(
        views,
        batch_sampler=order,
        collate_fn=as_is,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=obey_parent_in_the_background if trains_on_cpu else obey_parent_alone,
    )


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
