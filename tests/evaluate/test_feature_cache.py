import io
import logging
import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mocokit.data.sources.open_source import open_source
from mocokit.data.views import ImageReader
from mocokit.evaluate.feature_cache import FeatureCache
from mocokit.evaluate.features import EvaluationView, Features, LabelledImages, choose_images

VIEW = EvaluationView(size_px=16, crop_ratio=1.0, num_workers=0)


def _open(folder: Path) -> LabelledImages:
    return choose_images(ImageReader(open_source(folder), max_image_px=10**6, seed=0), VIEW)


class _Counted:
    """Computes random features and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Features:
        self.calls += 1
        return Features(rows=torch.randn(80, 8), labels=torch.arange(80), extract_s=1.5)


def test_features_are_computed_once_and_come_back_bit_by_bit(own_photos: Path, tmp_path: Path) -> None:
    compute = _Counted()
    images = _open(own_photos)
    first = FeatureCache(tmp_path / "f").get("weights", images, compute)
    again = FeatureCache(tmp_path / "f").get("weights", _open(own_photos), compute)
    assert compute.calls == 1
    assert torch.equal(first.rows, again.rows) and torch.equal(first.labels, again.labels)
    assert again.extract_s == 1.5


CHANGES: dict[str, Callable[[LabelledImages], tuple[str, LabelledImages]]] = {
    "weights": lambda images: ("other", images),
    "indices": lambda images: ("weights", images.only(images.indices[:-1])),
    "order": lambda images: ("weights", images.only(images.indices[::-1])),
    "size": lambda images: ("weights", replace(images, view=replace(VIEW, size_px=17))),
    "crop": lambda images: ("weights", replace(images, view=replace(VIEW, crop_ratio=0.875))),
    "labels": lambda images: ("weights", replace(images, labels=images.labels[::-1])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_weights_images_or_view_recomputes_the_features(
    own_photos: Path, tmp_path: Path, change: str
) -> None:
    compute = _Counted()
    images = _open(own_photos)
    cache = FeatureCache(tmp_path / "f")
    cache.get("weights", images, compute)
    cache.get(*CHANGES[change](images), compute)
    assert compute.calls == 2


def test_the_number_of_workers_does_not_recompute_the_features(own_photos: Path, tmp_path: Path) -> None:
    compute = _Counted()
    images = _open(own_photos)
    cache = FeatureCache(tmp_path / "f")
    cache.get("weights", images, compute)
    cache.get("weights", replace(images, view=replace(VIEW, num_workers=3)), compute)
    assert compute.calls == 1


def test_a_changed_image_recomputes_the_features(own_photos: Path, tmp_path: Path) -> None:
    compute = _Counted()
    images = _open(own_photos)
    FeatureCache(tmp_path / "f").get("weights", images, compute)
    path = Path(images.reader.source.name(5))
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    FeatureCache(tmp_path / "f").get("weights", _open(own_photos), compute)
    assert compute.calls == 2


@pytest.mark.parametrize("damage", ["cut", "a flipped bit", "empty", "not ours"])
def test_a_damaged_file_is_recomputed_with_a_warning(
    own_photos: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    compute = _Counted()
    images = _open(own_photos)
    cache = FeatureCache(tmp_path / "f")
    cache.get("weights", images, compute)
    (path,) = (tmp_path / "f").iterdir()
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    damaged = {"cut": raw[:-50], "a flipped bit": raw, "empty": bytearray(), "not ours": bytearray(b"{}" * 99)}
    path.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING, logger="mocokit"):
        fresh = cache.get("weights", images, compute)
    assert compute.calls == 2
    assert "damaged" in caplog.text and "computed again" in caplog.text
    assert torch.equal(cache.get("weights", images, compute).rows, fresh.rows)
    assert compute.calls == 2


def test_features_that_cannot_be_saved_are_returned_with_a_warning(
    own_photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING, logger="mocokit"):
        features = FeatureCache(tmp_path / "file" / "f").get("weights", _open(own_photos), _Counted())
    assert len(features.rows) == 80
    assert "features not kept" in caplog.text


def _make_zip(path: Path, names: list[str], *, other: int) -> None:
    """Write 740 images that all have 64 bytes; the last `other` of them differ from those of `other=0`."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            changed = number >= len(names) - other
            archive.writestr(name, bytes([number % 256, changed]) * 32)


def _make_tar(path: Path, names: list[str], *, other: int) -> None:
    with tarfile.open(path, "w") as archive:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 64
            changed = number >= len(names) - other
            archive.addfile(member, io.BytesIO(bytes([number % 256, changed]) * 32))


@pytest.mark.parametrize("make", [_make_zip, _make_tar])
@pytest.mark.parametrize("other", [1, 672])
def test_exchanged_members_of_an_archive_recompute_the_features(
    tmp_path: Path, make: Callable[..., None], other: int
) -> None:
    names = [f"{number % 5}/{number:03d}.jpg" for number in range(740)]
    place = tmp_path / f"data.{'zip' if make is _make_zip else 'tar'}"
    compute = _Counted()
    for number_of_others in (0, 0, other):
        make(place, names, other=number_of_others)
        FeatureCache(tmp_path / "f").get("weights", _open(place), compute)
    assert compute.calls == 2
