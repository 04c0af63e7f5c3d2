"""Thin images: a file of a few kilobytes with a side of a million pixels takes no more memory than its pixels."""

import io
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from mocokit.data.augment.recipes import AUG_PLUS, MAX_RESIZED_PX, evaluation_crop
from mocokit.data.packing.pack import pack
from mocokit.data.single_view import SingleViews
from mocokit.data.sources.open_source import open_source
from mocokit.data.statistics import measure_mean_std
from mocokit.data.views import ImageReader, LocalCrops, PlainViews, TwoViews
from mocokit.detection.batches import resized_size
from tests.data.decode.written_files import tiff

LIMIT_PX = 10**8


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _whole(image: Image.Image, size_px: int, crop_ratio: float) -> np.ndarray:
    """Return torchvision's Resize and CenterCrop, as the protocols of ImageNet say."""
    short = max(size_px, round(size_px / crop_ratio))
    resize = transforms.Resize(short, InterpolationMode.BILINEAR)
    return np.asarray(transforms.CenterCrop(size_px)(resize(image)))


def test_ordinary_images_are_cropped_bit_for_bit_as_torchvision_does() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        short, ratio = int(rng.integers(1, 90)), float(rng.choice([1.0, 1.3, 1.5, 2.0, 4.0, 30.0]))
        size = (short, int(short * ratio) + int(rng.integers(0, 3)))
        image = Image.fromarray(rng.integers(0, 256, (*size[:: rng.choice([1, -1])], 3), np.uint8))
        size_px, crop_ratio = int(rng.integers(8, 100)), float(rng.choice([1.0, 0.875, 0.9, 0.7]))
        crop = evaluation_crop(image, size_px=size_px, crop_ratio=crop_ratio)
        assert np.array_equal(np.asarray(crop), _whole(image, size_px, crop_ratio)), (size, size_px, crop_ratio)


@pytest.mark.parametrize("shape", [(4, 1093), (1093, 4), (1, 300), (9, 2600)])
def test_the_square_of_a_thin_image_is_that_of_the_whole_one(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = Image.fromarray(pixels)
    assert 256 * 256 * max(shape) / min(shape) > MAX_RESIZED_PX
    crop = np.asarray(evaluation_crop(image, size_px=224, crop_ratio=0.875)).astype(int)
    difference = np.abs(crop - _whole(image, 224, 0.875))
    assert difference.max() <= 2
    assert difference.mean() < 0.25


def _png(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (90, 120, 30)).save(file, "PNG")
    return file.getvalue()


def _views(reader: ImageReader) -> None:
    for pipeline in ("fast", "reference"):
        local = LocalCrops(num_crops=2, size_px=16, recipe=AUG_PLUS)
        views = TwoViews(reader, AUG_PLUS, size_px=32, seed=0, pipeline=pipeline, local=local)
        assert not views.make_batch([(0, index) for index in range(len(reader.source))], map).bad


def _single_views(reader: ImageReader) -> None:
    views = SingleViews(reader, size_px=32, seed=0)
    assert len(views.make_batch([(0, index) for index in range(len(reader.source))], map)[0]) == len(reader.source)


def _plain_views(reader: ImageReader) -> None:
    for size_px in (32, 224):
        batch = PlainViews(reader, size_px=size_px, crop_ratio=0.875).make_batch(range(len(reader.source)), map)
        assert (batch.pixels[:, 1] == 120).all()


def _statistics(reader: ImageReader) -> None:
    assert measure_mean_std(reader, size_px=224, seed=0)[0] == pytest.approx((90 / 255, 120 / 255, 30 / 255), abs=1e-3)


@pytest.mark.parametrize("use", [_views, _single_views, _plain_views, _statistics])
def test_an_image_of_a_million_pixels_in_a_row_takes_little_memory(
    tmp_path: Path, use: Callable[[ImageReader], None]
) -> None:
    for number, size in enumerate([(1, 1_000_000), (1_000_000, 1), (3, 400_000)]):
        (tmp_path / f"{number}.png").write_bytes(_png(size))
    strip = np.full((500_000, 1, 3), (90, 120, 30), np.uint8)
    (tmp_path / "strip.tif").write_bytes(tiff(strip, photometric=1, compression=8))
    before = _peak_mb()
    use(ImageReader(open_source(tmp_path), max_image_px=LIMIT_PX, seed=0))
    assert _peak_mb() - before < 200


def test_packing_stores_an_image_that_is_too_long_for_a_jpeg_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "long.png").write_bytes(_png((30, 100_000)))
    (tmp_path / "d" / "wide.png").write_bytes(_png((3000, 300)))
    before = _peak_mb()
    packed = pack(tmp_path / "d", tmp_path / "out", max_image_px=LIMIT_PX, short_side_px=24)
    assert (packed.num_images, packed.bad) == (2, ())
    assert _peak_mb() - before < 200


@pytest.mark.parametrize(
    ("size", "resized"), [((1, 10**6), (1, 1333)), ((10**6, 1), (1333, 1)), ((5000, 2), (1333, 1))]
)
def test_detection_resizes_a_thin_image_to_at_least_one_pixel(size: tuple[int, int], resized: tuple[int, int]) -> None:
    assert resized_size(*size, 800, 1333) == resized
