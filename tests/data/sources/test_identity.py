"""Changes of every kind, in every kind of source, and none where only the place or the times changed."""

import gzip
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.packing.pack import pack
from mocokit.data.sources import content
from mocokit.data.sources.identity import DataIdentity, describe_change, identify, load_identity
from mocokit.data.sources.left_out import describe_source
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.sources import ImageSource


def _identify(place: object) -> DataIdentity:
    return identify(open_source(place))  # type: ignore[arg-type]


def _as_folder(photos: Path, out: Path) -> Path:
    return Path(shutil.copytree(photos, out / "folder", copy_function=shutil.copyfile))


def _as_list(photos: Path, out: Path) -> Path:
    folder = _as_folder(photos, out)
    lines = [f"{path},{path.parent.name}\n" for path in sorted(folder.rglob("*.jpg"))]  # absolute paths
    (out / "list.csv").write_text("".join(lines))
    return out / "list.csv"


def _as_zip(photos: Path, out: Path) -> Path:
    with zipfile.ZipFile(out / "a.zip", "w") as archive:
        for path in sorted(photos.rglob("*.jpg")):
            archive.write(path, path.relative_to(photos).as_posix())
    return out / "a.zip"


def _as_tar(photos: Path, out: Path) -> Path:
    with tarfile.open(out / "a.tar", "w") as archive:
        archive.add(photos, ".")
    return out / "a.tar"


def _as_webdataset(photos: Path, out: Path) -> str:
    paths = sorted(photos.rglob("*.jpg"))
    for shard in (0, 1):
        with tarfile.open(out / f"w-{shard}.tar", "w") as archive:
            for path in paths[shard::2]:
                archive.add(path, path.relative_to(photos).as_posix())
    return str(out / "w-{0..1}.tar")


def _as_shards(photos: Path, out: Path) -> Path:
    pack(photos, out / "shards", max_image_px=10**6)
    return out / "shards"


def _as_idx(photos: Path, out: Path) -> Path:
    paths = sorted(photos.rglob("*.jpg"))
    pixels = np.stack([np.asarray(Image.open(path).convert("L").resize((28, 28))) for path in paths])
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
    with gzip.open(out / "t-images-idx3-ubyte.gz", "wb") as file:
        file.write(header + pixels.tobytes())
    return out / "t-images-idx3-ubyte.gz"


FORMS: dict[str, Callable[[Path, Path], object]] = {
    "folder": _as_folder,
    "list": _as_list,
    "zip": _as_zip,
    "tar": _as_tar,
    "webdataset": _as_webdataset,
    "shards": _as_shards,
    "idx": _as_idx,
}


def _made(form: str, photos: Path, out: Path) -> DataIdentity:
    out.mkdir(parents=True)
    return _identify(FORMS[form](photos, out))


def _other_image(path: Path) -> None:
    """Exchange an image by another one."""
    Image.open(path).rotate(180).save(path)


@pytest.mark.parametrize("form", FORMS)
def test_copied_or_moved_data_is_the_same_and_an_exchanged_image_is_found(
    own_photos: Path, tmp_path: Path, form: str
) -> None:
    before = _made(form, own_photos, tmp_path / "here")
    for path in own_photos.rglob("*"):
        os.utime(path, (10**9, 10**9))
    assert _made(form, own_photos, tmp_path / "there" / "below").digest == before.digest
    _other_image(own_photos / "coffee" / "007.jpg")
    now = _made(form, own_photos, tmp_path / "exchanged")
    name = str(sorted(own_photos.rglob("*.jpg")).index(own_photos / "coffee" / "007.jpg")) if form == "idx" else "007"
    change = describe_change(before, now)
    assert "80 images now: 1 with other content (" in change and name in change


@pytest.mark.parametrize("form", FORMS)
def test_an_added_and_a_removed_image_are_named(own_photos: Path, tmp_path: Path, form: str) -> None:
    before = _made(form, own_photos, tmp_path / "before")
    (own_photos / "cat" / "000.jpg").unlink()
    shutil.copy(own_photos / "cat" / "001.jpg", own_photos / "cat" / "new.jpg")
    now = _made(form, own_photos, tmp_path / "now")
    change = describe_change(before, now)
    if form == "idx":
        assert change.startswith("80 images now: 16 with other content (16, 17, 18, ...)")
    else:
        assert "1 removed (" in change and "cat/000.jpg" in change and "cat/new.jpg" in change, change
    assert before.digest != now.digest


def test_a_changed_byte_is_found_although_the_size_stays(tmp_path: Path) -> None:
    for number in range(60):
        Image.fromarray(np.full((40, 50, 3), number, np.uint8)).save(tmp_path / f"{number:02d}.bmp")
    before = _identify(tmp_path)
    raw = bytearray((tmp_path / "31.bmp").read_bytes())
    raw[3000] ^= 1
    (tmp_path / "31.bmp").write_bytes(raw)
    assert describe_change(before, _identify(tmp_path)) == "60 images now: 1 with other content (31.bmp)"


def test_a_large_file_is_looked_at_in_three_places(tmp_path: Path) -> None:
    raw = bytearray(np.random.default_rng(0).bytes(10 * content.WHOLE_BYTES))
    (tmp_path / "a.bmp").write_bytes(raw)
    (tmp_path / "b.bmp").write_bytes(raw)
    digests = {_identify(tmp_path).digest}
    for place in (0, len(raw) // 2, len(raw) - 1):
        changed = bytearray(raw)
        changed[place] ^= 255
        (tmp_path / "a.bmp").write_bytes(changed)
        digests.add(_identify(tmp_path).digest)
    assert len(digests) == 4


def test_other_labels_and_another_order_are_other_data(own_photos: Path) -> None:
    names = [open_source(own_photos).name(index) for index in range(4)]
    found = []
    for number, rows in enumerate(([*zip(names, "bbaa", strict=True)], [*zip(names, "cbaa", strict=True)])):
        (own_photos / f"{number}.csv").write_text("".join(f"{name},{label}\n" for name, label in rows))
        found.append(_identify(own_photos / f"{number}.csv"))
    assert describe_change(*found) == "4 images now: 1 with another label (000.jpg)"
    (own_photos / "2.csv").write_text("".join(f"{name},{label}\n" for name, label in reversed(rows)))
    assert describe_change(found[1], _identify(own_photos / "2.csv")) == "4 images now: in another order"
    assert describe_change(found[0], found[0]) == ""


def test_a_file_that_vanished_since_it_was_listed_is_other_data(own_photos: Path) -> None:
    source = open_source(own_photos)
    before = identify(source)
    Path(source.name(9)).unlink()
    assert describe_change(before, identify(source)) == "80 images now: 1 with other content (brick/009.jpg)"


def test_a_pipe_among_the_files_is_not_opened(own_photos: Path) -> None:
    os.mkfifo(own_photos / "cat" / "pipe.jpg")
    identity = _identify(own_photos)
    assert identity.sizes[identity.names.index("cat/pipe.jpg")] == content.MISSING


class Squares(ImageSource):
    """Images that are computed; one of them can be exchanged."""

    def __init__(self, count: int, other: int = -1) -> None:
        self.count = count
        self.other = other
        self.num_reads = 0

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> NDArray[np.uint8]:
        self.num_reads += 1
        return np.full((4, 4), (index + (index == self.other)) % 251, np.uint8)


def test_own_objects_are_sampled_by_a_bounded_number_of_reads() -> None:
    few = Squares(100)
    assert describe_change(identify(few), identify(Squares(100, other=42))).endswith("1 with other content (42)")
    many = Squares(20_000)
    before = identify(many)
    assert content.SAMPLED_READS / 2 < many.num_reads < content.SAMPLED_READS * 2
    assert identify(Squares(20_000)).digest == before.digest


def test_a_sample_hardly_changes_when_images_are_added() -> None:
    names = [f"{number:06d}.jpg" for number in range(50_000)]
    one, more = (set(content.draw_sample(names[:count], 1000)) for count in (49_000, 50_000))
    assert abs(len(one) - 1000) < 4 * 1000**0.5
    assert len(one & more) > 0.95 * len(one)


def test_an_identity_loads_as_it_was_saved_and_damage_is_no_identity(photos: Path) -> None:
    saved = _identify(photos)
    file = io.BytesIO()
    saved.save(file)
    raw = file.getvalue()
    loaded = load_identity(raw, like=saved)
    assert loaded is not None and loaded.digest == saved.digest
    assert load_identity(raw[:-200], like=saved) is None
    assert load_identity(b"", like=saved) is None
    bomb = io.BytesIO()
    np.savez_compressed(bomb, names=np.zeros(2**27, np.uint8))
    assert load_identity(bomb.getvalue(), like=saved) is None


def test_a_run_folder_inside_the_data_is_left_out(own_photos: Path) -> None:
    before = _identify(own_photos)
    (own_photos / "runs" / "a" / "checkpoints").mkdir(parents=True)
    (own_photos / "runs" / "a" / "config.toml").touch()
    (own_photos / "table").mkdir()
    (own_photos / "table" / "table.json").touch()
    for picture in ("runs/a/views.png", "table/table.png"):
        shutil.copy(own_photos / "cat" / "001.jpg", own_photos / picture)
    assert _identify(own_photos).digest == before.digest
    told = describe_source(open_source(own_photos))
    assert "2 folders that mocokit wrote (runs/a, table: their pictures are no data)" in told
