import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mocokit.data.augment.recipes import AUG_PLUS
from mocokit.data.batch import ViewBatch
from mocokit.data.loading.loader import BatchOrder, build_loader
from mocokit.data.loading.prefetch import BackgroundMap, on_device
from mocokit.data.sources.open_source import open_source
from mocokit.data.views import ImageReader, LocalCrops, TwoViews


def _loader(photos: Path, *, crops_only: bool, workers: int = 0) -> list[ViewBatch]:
    reader = ImageReader(open_source(photos), max_image_px=10**6, seed=0)
    local = LocalCrops(num_crops=2, size_px=12, recipe=replace(AUG_PLUS, crop_scale=(0.05, 0.14)))
    views = TwoViews(reader, AUG_PLUS, size_px=24, seed=0, pipeline="fast", crops_only=crops_only, local=local)
    order = BatchOrder(num_images=80, global_batch_size=10, own_rows=range(10), start_step=0, total_steps=6, seed=0)
    return list(build_loader(views, order, num_workers=workers))


def _equal(one: ViewBatch, other: ViewBatch) -> bool:
    mine = one.tensors()
    theirs = other.tensors()
    assert mine.keys() == theirs.keys() == {"query", "key", "image_ids", "local"}
    return all(torch.equal(mine[name].cpu(), theirs[name].cpu()) for name in mine)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmenting_on_the_device_changes_no_pixel(photos: Path, workers: int) -> None:
    on_cpu = _loader(photos, crops_only=False)
    cropped = _loader(photos, crops_only=True, workers=workers)
    assert not _equal(on_cpu[0], replace(cropped[0], params=None))
    finished = list(on_device(cropped, torch.device("cpu")))
    assert len(finished) == len(on_cpu) == 6
    assert all(_equal(one, other) and other.params is None for one, other in zip(on_cpu, finished, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_on_the_cpu(photos: Path) -> None:
    on_cpu = _loader(photos, crops_only=False)
    cropped = _loader(photos, crops_only=True, workers=2)
    finished = list(on_device(cropped, torch.device("cuda")))
    assert all(_equal(one, other) for one, other in zip(on_cpu, finished, strict=True))


def test_work_runs_one_result_ahead_and_in_order() -> None:
    done: list[int] = []

    def square(number: int) -> int:
        """Record the requested number."""
        done.append(number)
        return number * number

    stream = iter(BackgroundMap(range(6), square))
    assert next(stream) == 0
    until = time.monotonic() + 10
    while len(done) < 3 and time.monotonic() < until:  # one handed over, one waiting, one in the thread's hands
        time.sleep(0.01)
    time.sleep(0.05)
    assert done == [0, 1, 2]
    assert list(stream) == [1, 4, 9, 16, 25]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_an_error_in_the_thread_is_raised_by_the_consumers_next(error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    stream = iter(BackgroundMap(items(), lambda number: number))
    assert next(stream) == 1
    with pytest.raises(type(error)):
        next(stream)
    assert not _prefetching()


def test_a_consumer_that_stops_early_leaves_no_thread_behind() -> None:
    stream = iter(BackgroundMap(itertools.count(), lambda number: number))
    assert [next(stream), next(stream)] == [0, 1]
    assert _prefetching()
    stream.close()  # type: ignore[attr-defined]
    assert not _prefetching()


def _prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]
