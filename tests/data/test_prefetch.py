from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mocokit.data.augment import AUG_PLUS
from mocokit.data.loader import BatchOrder, build_loader
from mocokit.data.open_source import open_source
from mocokit.data.prefetch import on_device
from mocokit.data.views import ImageReader, LocalCrops, TwoViews, ViewBatch


def _loader(photos: Path, *, crops_only: bool, workers: int = 0, pin_memory: bool = False) -> list[ViewBatch]:
    reader = ImageReader(open_source(photos), max_image_px=10**6, seed=0)
    local = LocalCrops(num_crops=2, size_px=12, recipe=replace(AUG_PLUS, crop_scale=(0.05, 0.14)))
    views = TwoViews(reader, AUG_PLUS, size_px=24, seed=0, pipeline="fast", crops_only=crops_only, local=local)
    order = BatchOrder(num_images=80, global_batch_size=10, own_rows=range(10), start_step=0, total_steps=6, seed=0)
    return list(build_loader(views, order, num_workers=workers, pin_memory=pin_memory))


def _equal(one: ViewBatch, other: ViewBatch) -> bool:
    mine, theirs = one.tensors(), other.tensors()
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
    cropped = _loader(photos, crops_only=True, workers=2, pin_memory=True)
    finished = list(on_device(cropped, torch.device("cuda")))
    assert all(_equal(one, other) for one, other in zip(on_cpu, finished, strict=True))
