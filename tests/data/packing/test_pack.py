"""Pack images into shards, and unpack them."""

import io
import os
import resource
import signal
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mocokit.data.packing.pack import PackResult, pack, unpack
from mocokit.data.sources.open_source import ImageData, open_source
from mocokit.data.sources.shard_index import ShardIndex, load_index
from mocokit.data.sources.shards import ShardSource, open_shards

MAX_PX = 10**6


def _photo(width: int = 20, height: int = 16, seed: int = 0, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def _write(root: Path, *names: str) -> dict[str, bytes]:
    """Write a different image under each name; return the bytes by name."""
    files = {name: _photo(seed=seed, kind="PNG" if ".png" in name else "JPEG") for seed, name in enumerate(names)}
    for name, raw in files.items():
        _write_file(root / name, raw)
    return files


def _write_file(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)


def _read_all(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _pack(data: ImageData, out: Path, **settings: Any) -> PackResult:
    return pack(data, out, **{"max_image_px": MAX_PX, **settings})


def test_unpack_gives_the_bytes_back_under_their_names(tmp_path: Path) -> None:
    odd_byte = os.fsdecode(b"dog/\xff.png")  # a name that is not UTF-8
    files = _write(
        tmp_path / "in",
        "cat/1.jpg",
        "dog/1.jpg",
        "cat/1.png",
        "cat/ä ö.JPG",
        "dog/a.b.c.jpeg",
        "dog/new\nline.jpg",
        "dog/deep/er/日本.jpg",
        odd_byte,
    )
    result = _pack(tmp_path / "in", tmp_path / "packed", shard_bytes=4096)
    assert (result.num_images, result.bad) == (len(files), ())
    assert result.num_shards > 2
    assert result.num_bytes == sum(map(len, files.values()))
    unpack(tmp_path / "packed", tmp_path / "out")
    assert _read_all(tmp_path / "out") == files, "and no labels.csv, since class folders tell the labels"


def test_images_and_labels_are_in_the_order_of_the_source(photos: Path, tmp_path: Path) -> None:
    folder = open_source(photos)
    _pack(photos, tmp_path / "packed", shard_bytes=20_000)
    packed = open_source(tmp_path / "packed")
    assert isinstance(packed, ShardSource)
    assert [str(photos / name) for name in packed.names] == [folder.name(i) for i in range(len(folder))]
    assert (packed.labels, packed.class_names) == (folder.labels, folder.class_names)
    assert [packed.read(i) for i in range(len(packed))] == [folder.read(i) for i in range(len(folder))]


def test_shards_do_not_depend_on_the_number_of_workers(photos: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        _pack(photos, tmp_path / str(workers), shard_bytes=20_000, short_side_px=32, workers=workers)
    assert _read_all(tmp_path / "0") == _read_all(tmp_path / "2")


def test_shards_stay_below_their_size_and_are_plain_tar_files(photos: Path, tmp_path: Path) -> None:
    result = _pack(photos, tmp_path, shard_bytes=20_000)
    names: list[str] = []
    for number in range(result.num_shards):
        path = tmp_path / f"shard-{number:05d}.tar"
        assert path.stat().st_size <= 20_000
        with tarfile.open(path) as archive:
            names += archive.getnames()
    assert names[:4] == ["000000000.jpg", "000000000.cls", "000000001.jpg", "000000001.cls"]
    assert len(names) == 2 * len(open_source(photos))


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_the_shards(photos: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    result = _pack(photos, tmp_path, shard_bytes=20_000)
    pattern = f"{tmp_path}/shard-{{00000..{result.num_shards - 1:05d}}}.tar"
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False))
    source = open_source(photos)
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(len(source))]
    assert [sample["jpg"] for sample in samples] == [source.read(i) for i in range(len(source))]
    assert tuple(int(sample["cls"]) for sample in samples) == source.labels


def test_a_short_side_shrinks_large_images_and_keeps_small_ones(tmp_path: Path) -> None:
    files = {
        "large.png": _photo(90, 60, kind="PNG"),
        "small.png": _photo(300, 32, kind="PNG"),
        "tall.jpg": _photo(64, 200),
    }
    for name, raw in files.items():
        _write_file(tmp_path / "in" / name, raw)
    turned = Image.open(io.BytesIO(files["tall.jpg"]))
    exif = turned.getexif()
    exif[0x0112] = 6  # lies on its side
    turned.save(tmp_path / "in" / "turned.jpg", exif=exif)
    _pack(tmp_path / "in", tmp_path / "packed", short_side_px=32)
    unpack(tmp_path / "packed", tmp_path / "out")
    written = _read_all(tmp_path / "out")
    assert written["small.png"] == files["small.png"]
    sizes = {name: Image.open(io.BytesIO(raw)).size for name, raw in written.items()}
    assert sizes == {"large.png.jpg": (48, 32), "small.png": (300, 32), "tall.jpg": (32, 100), "turned.jpg": (100, 32)}
    small = Image.open(io.BytesIO(written["large.png.jpg"]))
    assert small.layer[0][1:3] == (2, 2), "chroma at half the resolution"  # type: ignore[attr-defined]


def test_shrunk_images_look_like_the_originals(photograph: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photograph.save(tmp_path / "in" / "a.png")
    _pack(tmp_path / "in", tmp_path / "packed", short_side_px=50)
    shrunk = np.asarray(Image.open(io.BytesIO(bytes(open_source(tmp_path / "packed").read(0)))), np.float64)
    exact = np.asarray(photograph.resize((75, 50), Image.Resampling.LANCZOS), np.float64)
    assert np.abs(shrunk - exact).mean() < 4  # quality 90 and halved chroma change so small an image by less


def test_a_large_jpeg_is_shrunk_from_a_fraction_of_its_size(photograph: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    large = photograph.resize((900, 600), Image.Resampling.BICUBIC)
    large.save(tmp_path / "in" / "a.jpg", quality=95)
    _pack(tmp_path / "in", tmp_path / "packed", short_side_px=60)  # decoded at 1/4: 225 x 150
    shrunk = Image.open(io.BytesIO(bytes(open_source(tmp_path / "packed").read(0))))
    assert shrunk.size == (90, 60)
    exact = np.asarray(large.resize((90, 60), Image.Resampling.LANCZOS), np.float64)
    assert np.abs(np.asarray(shrunk, np.float64) - exact).mean() < 4


def test_bad_images_are_left_out_and_listed(tmp_path: Path) -> None:
    files = _write(tmp_path / "in", "cat/1.jpg", "cat/2.jpg", "dog/3.jpg")
    (tmp_path / "in/cat/2.jpg").write_bytes(files["cat/2.jpg"][:300])
    (tmp_path / "in/dog/4.jpg").write_bytes(b"")
    (tmp_path / "in/dog/5.jpg").symlink_to(tmp_path / "gone.jpg")
    result = _pack(tmp_path / "in", tmp_path / "packed")
    assert [(image.index, Path(image.name).name) for image in result.bad] == [(1, "2.jpg"), (3, "4.jpg"), (4, "5.jpg")]
    lines = (tmp_path / "packed/skipped.txt").read_text().splitlines()
    assert lines[1] == f"{tmp_path}/in/dog/4.jpg: empty file"
    packed = open_source(tmp_path / "packed")
    assert packed.labels == (0, 1)
    assert [packed.read(0), packed.read(1)] == [files["cat/1.jpg"], files["dog/3.jpg"]]


def _write_idx(folder: Path) -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 7), np.uint8)
    labels = np.array([7, 0, 7], np.uint8)
    (folder / "t-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes())
    (folder / "t-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 3) + labels.tobytes())
    return folder / "t-images-idx3-ubyte"


def test_pixels_of_an_idx_file_become_png(tmp_path: Path) -> None:
    idx = open_source(_write_idx(tmp_path / "in"))
    _pack(tmp_path / "in" / "t-images-idx3-ubyte", tmp_path / "packed")
    packed = open_source(tmp_path / "packed")
    assert (packed.labels, packed.class_names) == (idx.labels, idx.class_names) == ((1, 0, 1), ("000", "007"))
    for i in range(3):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(bytes(packed.read(i))))), idx.read(i))


class Photographs:
    """A source from outside: a JPEG file, then a PNG file, with labels."""

    labels = (1, 0)
    class_names = ("cat", "dog")

    def __len__(self) -> int:
        return 2

    def name(self, index: int) -> str:
        return f"record {index}"

    def read(self, index: int) -> bytes:
        return _photo(seed=index, kind=("JPEG", "PNG")[index])


def test_images_of_an_own_source_are_packed_under_their_numbers(tmp_path: Path) -> None:
    _pack(Photographs(), tmp_path / "packed", workers=2)
    packed = open_source(tmp_path / "packed")
    assert isinstance(packed, ShardSource)
    assert packed.names == ("000000.jpg", "000001.png")
    assert (packed.labels, packed.class_names) == ((1, 0), ("cat", "dog"))
    assert [packed.read(i) for i in (0, 1)] == [Photographs().read(i) for i in (0, 1)]


def test_labels_that_no_folder_tells_are_unpacked_as_a_list(tmp_path: Path) -> None:
    files = _write(tmp_path / "in", "b.jpg", "a é.jpg", "x,y.jpg")
    (tmp_path / "in/list.csv").write_text('b.jpg,old cat\na é.jpg,dog\n"x,y.jpg",old cat\n')
    _pack(tmp_path / "in/list.csv", tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "out")
    again = open_source(tmp_path / "out" / "labels.csv")
    assert (again.labels, again.class_names) == ((1, 0, 1), ("dog", "old cat"))
    assert [again.read(i) for i in range(3)] == list(files.values())


def test_names_of_a_list_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    files = _write(tmp_path, "a.jpg", "in/a.jpg", "b.jpg")
    (tmp_path / "in/list.txt").write_text(f"../a.jpg\na.jpg\n{tmp_path}/b.jpg\na.jpg\n")
    _pack(tmp_path / "in/list.txt", tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "out")
    assert _read_all(tmp_path / "out") == {
        "_up/a.jpg": files["a.jpg"],
        "a.jpg": files["in/a.jpg"],
        f"_root{tmp_path}/b.jpg": files["b.jpg"],
    }


def _rename_in_index(folder: Path, names: tuple[str, ...]) -> None:
    index = load_index((folder / "shard-index.npz").read_bytes(), "index")
    with (folder / "shard-index.npz").open("wb") as file:
        ShardIndex(names, index.members, index.labels, index.class_names, index.shard_bytes).save(file)


@pytest.mark.parametrize("name", ["../evil.jpg", "x/../../evil.jpg", "/evil.jpg", "//evil.jpg", "./.././evil.jpg"])
def test_a_hostile_index_writes_nothing_outside(tmp_path: Path, name: str) -> None:
    _write(tmp_path / "in", "a.jpg")
    _pack(tmp_path / "in", tmp_path / "packed")
    _rename_in_index(tmp_path / "packed", (name,))
    unpack(tmp_path / "packed", tmp_path / "deep/out")
    assert len(_read_all(tmp_path / "deep/out")) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"in", "packed", "deep"}
    assert not Path("/evil.jpg").exists()


def test_two_images_of_one_name_are_not_merged(tmp_path: Path) -> None:
    _write(tmp_path / "in", "a.jpg", "b.jpg")
    _pack(tmp_path / "in", tmp_path / "packed")
    _rename_in_index(tmp_path / "packed", ("a.jpg", "a.jpg"))
    with pytest.raises(ValueError, match=r"out=.*a.jpg: two different images have this name"):
        unpack(tmp_path / "packed", tmp_path / "out")


def test_unpack_writes_good_images_and_lists_damaged_ones(tmp_path: Path) -> None:
    files = _write(tmp_path / "in", "a.jpg", "b.jpg")
    _pack(tmp_path / "in", tmp_path / "packed")
    shard = tmp_path / "packed/shard-00000.tar"
    whole = bytearray(shard.read_bytes())
    whole[600] ^= 1  # one bit of the first image
    shard.write_bytes(whole)
    result = unpack(tmp_path / "packed", tmp_path / "out")
    assert [image.reason for image in result.bad] == ["damaged: the bytes are not those that were packed"]
    assert _read_all(tmp_path / "out") == {"b.jpg": files["b.jpg"]}


def _stop_at(done: int, stop: Callable[[], None]) -> Callable[[int, int], None]:
    return lambda now, total: stop() if now == done else None


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_pack_leaves_an_empty_folder(photos: Path, tmp_path: Path, workers: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        _pack(photos, tmp_path, shard_bytes=20_000, workers=workers, on_progress=_stop_at(50, _interrupt))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_pack_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    for number in range(60):
        _write_file(tmp_path / f"in/{number:02d}.png", _photo(100, 100, seed=number, kind="PNG"))  # 30 kB
    code = (
        "import os, signal, sys; from mocokit.data.packing.pack import pack\n"
        "def die(done, total): done == 30 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "pack(sys.argv[1], sys.argv[2], max_image_px=10**6, shard_bytes=200_000, workers=2, on_progress=die)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "in"), str(tmp_path / "out")]
    killed = subprocess.run(
        arguments, check=False, capture_output=True, timeout=60
    )  # returns when its workers have ended too
    assert killed.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left[:2] == ["shard-00000.tar.partial", "shard-00001.tar.partial"]
    assert all(name.endswith(".partial") for name in left)
    with pytest.raises(ValueError, match="no images below this folder"):
        open_source(tmp_path / "out")
    with pytest.raises(ValueError, match="not found"):
        open_source(f"{tmp_path}/out/shard-{{00000..00001}}.tar")
    with pytest.raises(ValueError, match=r"out=.*: exists and is not empty; remove it or choose another folder"):
        _pack(tmp_path / "in", tmp_path / "out")


def test_a_full_disk_is_an_error_with_its_path_and_leaves_no_file(photos: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # like a full disk, except for the number of the error
    try:
        with pytest.raises(OSError, match="File too large") as error:
            _pack(photos, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.filename == str(tmp_path / "shard-00000.tar.partial")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "settings", "message"),
    [
        (".", {}, "out=.*: exists and is not empty"),
        ("s3://bucket/x", {}, "must be a folder of this machine"),
        ("new", {"short_side_px": 3}, "short_side_px=3: must be at least 8"),
        ("new", {"quality": 0}, "quality=0: must be in 1..100"),
        ("new", {"shard_bytes": 0}, "shard_bytes=0: must be at least 1"),
        ("new", {"max_image_px": 9}, "no image can be used; the first is .*a.jpg .20x16 pixels"),
    ],
)
def test_an_error_of_packing_names_its_cause(tmp_path: Path, out: str, settings: dict[str, Any], message: str) -> None:
    _write(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match=message):
        pack(tmp_path, out if "://" in out else tmp_path / out, **{"max_image_px": MAX_PX, **settings})


def test_shards_can_be_packed_again(photos: Path, tmp_path: Path) -> None:
    _pack(photos, tmp_path / "once")
    _pack(tmp_path / "once", tmp_path / "twice")
    assert _read_all(tmp_path / "once") == _read_all(tmp_path / "twice")
    assert open_shards(str(tmp_path / "twice")).names == open_shards(str(tmp_path / "once")).names


@pytest.mark.parametrize("value_range", [(5.0, 1.0), (1.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_value_range_that_is_none_is_refused(value_range: tuple[float, float], photos: Path, tmp_path: Path) -> None:
    """Before: a reversed one wrote inverted images."""
    with pytest.raises(ValueError, match=r"^value_range=.*needs two finite numbers LOW < HIGH"):
        pack(photos, tmp_path / "packed", max_image_px=10**6, short_side_px=16, value_range=value_range)
