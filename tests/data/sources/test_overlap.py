"""Test images that are training images too, over all kinds of sources."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mocokit.data.packing.pack import pack
from mocokit.data.sources import overlap
from mocokit.data.sources.identity import identify
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.overlap import Overlap, find_overlap


def _overlap(train: Path | str, test: Path | str) -> Overlap:
    sources = open_source(train), open_source(test)
    return find_overlap(*sources, *map(identify, sources))


def _zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.jpg")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


def _packed(folder: Path) -> Path:
    pack(folder, folder.with_name(f"{folder.name}_shards"), max_image_px=10**6)
    return folder.with_name(f"{folder.name}_shards")


FORMS: dict[str, Callable[[Path], Path]] = {"folder": lambda folder: folder, "zip": _zipped, "shards": _packed}


@pytest.fixture
def halves(photos: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of 40 images each, of which 10 are the same under other names."""
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        part = "train" if number < 40 else "test"
        (tmp_path / part).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / part / f"{number}.jpg")
        if number >= 70:
            shutil.copy(path, tmp_path / "train" / f"again_{number}.jpg")
    return tmp_path / "train", tmp_path / "test"


@pytest.mark.parametrize("train_form", FORMS)
@pytest.mark.parametrize("test_form", FORMS)
def test_shared_images_are_found_by_their_bytes(halves: tuple[Path, Path], train_form: str, test_form: str) -> None:
    found = _overlap(FORMS[train_form](halves[0]), FORMS[test_form](halves[1]))
    assert (found.num_test, found.looked_at, found.shared) == (40, 40, 10)
    assert str(found) == "10 of 40 test images (25 %) are also training images, byte for byte, such as 70.jpg"


def test_distinct_images_and_images_of_equal_size_are_not_shared(tmp_path: Path) -> None:
    for part, first in (("train", 0), ("test", 100)):
        (tmp_path / part).mkdir()
        for number in range(20):
            Image.fromarray(np.full((8, 8, 3), first + number, np.uint8)).save(tmp_path / part / f"{number}.bmp")
    assert _overlap(tmp_path / "train", tmp_path / "test").shared == 0
    assert _overlap(tmp_path / "test", tmp_path / "test").shared == 20


def test_only_a_sample_is_opened_if_many_sizes_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    for number in range(150):
        pixels = np.full((8, 8 + number % 15, 3), number, np.uint8)  # 15 sizes of 10 images each
        Image.fromarray(pixels).save(tmp_path / "train" / f"{number:03d}.bmp")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    monkeypatch.setattr(overlap, "MAX_HASHED", 120)
    found = _overlap(tmp_path / "train", tmp_path / "test")
    assert 5 <= found.looked_at < 120
    assert found.shared == found.looked_at, "all of them, on the sample too"
    assert "test images looked at (100 %)" in str(found)


def test_a_part_is_compared_if_all_images_have_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    for number in range(200):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / "train" / f"{number:03d}.bmp")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    monkeypatch.setattr(overlap, "MAX_HASHED", 150)
    found = _overlap(tmp_path / "train", tmp_path / "test")
    assert found.at_least and found.looked_at == 75
    assert 10 < found.shared < 50, "75 of 75 are shared, and 75 of 200 training images were looked at"
    assert str(found).startswith(f"at least {found.shared} of 75 test images looked at (")


def test_images_of_idx_files_are_compared_by_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 6, 6), dtype=np.uint8)
    for name, rows in (("a", pixels[:20]), ("b", pixels[15:])):
        header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in rows.shape)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(header + rows.tobytes())
    assert _overlap(tmp_path / "a-images-idx3-ubyte", tmp_path / "b-images-idx3-ubyte").shared == 5


def test_files_that_can_not_be_read_are_not_shared(own_photos: Path) -> None:
    source = open_source(own_photos)
    identity = identify(source)
    for path in own_photos.rglob("*.jpg"):
        path.unlink()
    assert find_overlap(source, source, identity, identity).shared == 0
