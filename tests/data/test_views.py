from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mocokit.data.augment.recipes import AUG_PLUS, MOCO_V3_PAIR
from mocokit.data.batch import ViewBatch
from mocokit.data.sources.open_source import open_source
from mocokit.data.views import ImageReader, LocalCrops, TwoViews, draw_views

LOCAL = LocalCrops(num_crops=3, size_px=16, recipe=replace(AUG_PLUS, crop_scale=(0.05, 0.14)))


def _batch(
    folder: Path, epoch: int, *, local: LocalCrops | None, pipeline: str = "fast", crops_only: bool = False
) -> ViewBatch:
    """Six images of one epoch, from a fresh start."""
    reader = ImageReader(open_source(folder), max_image_px=10**8, seed=0)
    views = TwoViews(
        reader,
        AUG_PLUS,
        key_recipe=MOCO_V3_PAIR[1],
        size_px=32,
        seed=5,
        pipeline=pipeline,
        crops_only=crops_only,
        local=local,
    )
    return views.make_batch([(epoch, index) for index in range(6)], map)


@pytest.fixture(scope="module")
def large_photos(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six real JPEGs of 640x480, of which views of 32 px need an eighth or a quarter of the pixels."""
    folder = tmp_path_factory.mktemp("large")
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))[::14]):
        file = BytesIO()
        Image.open(path).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        (folder / f"{number}.jpg").write_bytes(file.getvalue())
    return folder


@pytest.mark.parametrize("crops_only", [False, True])
@pytest.mark.parametrize("pipeline", ["fast", "reference"])
def test_local_crops_change_no_pixel_of_query_and_key(large_photos: Path, pipeline: str, crops_only: bool) -> None:
    """Even if the local crops (32 px from 5 % of the image) need finer pixels than the views."""
    small_parts = replace(LOCAL, size_px=32)
    for local in (LOCAL, small_parts):
        plain = _batch(large_photos, 1, local=None, pipeline=pipeline, crops_only=crops_only)
        more = _batch(large_photos, 1, local=local, pipeline=pipeline, crops_only=crops_only)
        assert plain.local is None and more.local is not None
        for name, tensor in plain.tensors().items():
            assert torch.equal(more.tensors()[name], tensor), name
        for mine, wanted in zip(
            (more.augmented().query, more.augmented().key),
            (plain.augmented().query, plain.augmented().key),
            strict=True,
        ):
            assert torch.equal(mine, wanted)


def test_both_pipelines_make_the_same_local_crops(photos: Path) -> None:
    fast, reference = (_batch(photos, 0, local=LOCAL, pipeline=name).local for name in ("fast", "reference"))
    assert fast is not None and reference is not None
    assert fast.shape == (6, 3, 3, 16, 16)
    assert fast.dtype == torch.uint8
    assert torch.equal(fast, reference)


def test_local_crops_of_large_jpegs_are_as_close_to_the_reference_as_views(large_photos: Path) -> None:
    """The image is decoded smaller, but keeps the pixels that each crop needs (pipelines.LEAST_ENLARGED)."""
    for local in (LOCAL, replace(LOCAL, size_px=32)):
        fast, reference = (_batch(large_photos, 0, local=local, pipeline=name).local for name in ("fast", "reference"))
        assert fast is not None and reference is not None
        assert (fast.float() - reference.float()).abs().mean() < 1.5  # levels of 255; what parity.py allows views


def test_crops_depend_on_the_epoch_and_not_on_earlier_batches(photos: Path) -> None:
    first, again, other = (_batch(photos, epoch, local=LOCAL).local for epoch in (3, 3, 4))
    assert first is not None and again is not None and other is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_crop_does_not_depend_on_the_number_of_crops(photos: Path) -> None:
    three, one = (_batch(photos, 0, local=replace(LOCAL, num_crops=num)).local for num in (3, 1))
    assert three is not None and one is not None
    assert torch.equal(three[:, :1], one)
    assert not torch.equal(three[:, 0], three[:, 1]), "each is a draw of its own"


def test_local_crops_cover_the_share_of_the_image_given_by_their_recipe() -> None:
    shares = []
    for index in range(200):
        drawn = draw_views([AUG_PLUS, AUG_PLUS, LOCAL.recipe, LOCAL.recipe], 0, 0, index)(400, 400)
        shares += [params.crop[2] * params.crop[3] / 400**2 for params in drawn[2:]]
    assert 0.049 < min(shares) < 0.06
    assert 0.13 < max(shares) < 0.141
    assert np.mean(shares) == pytest.approx(0.095, abs=0.005)


@pytest.mark.parametrize("name", ["fast", "reference"])
def test_crops_augmented_as_a_batch_equal_whole_ones(photos: Path, name: str) -> None:
    whole, cropped = (_batch(photos, 2, local=LOCAL, pipeline=name, crops_only=only) for only in (False, True))
    assert whole.local is not None and cropped.local is not None
    assert not torch.equal(cropped.local, whole.local)
    finished = cropped.augmented()
    assert finished.local is not None and finished.params is None
    assert torch.equal(finished.local, whole.local)
