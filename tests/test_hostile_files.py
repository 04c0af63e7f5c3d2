"""Hostile files. Each of them once hung, filled the memory, left a traceback or reached another program."""

import gzip
import io
import json
import os
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mocokit.config.schema import Config
from mocokit.config.toml import from_toml
from mocokit.data.decode.decode import DecodeError, decode
from mocokit.data.decode.jpeg import read_jpeg_header
from mocokit.data.sources.archives import open_zip
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.shard_index import load_index
from mocokit.data.sources.shards import expand_pattern
from mocokit.detection.data_sets import open_voc
from mocokit.engine.backbone_file import load_backbone
from mocokit.engine.checkpoint import CheckpointError, load_checkpoint


def test_a_zip_member_that_says_it_is_small_does_not_unpack_to_more(tmp_path: Path) -> None:
    """Before: Python unpacked all 64 MB and then cut them to the 100 bytes that the header said."""
    import tracemalloc

    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**26))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 2**26), struct.pack("<I", 100)))
    source = open_zip(path)
    tracemalloc.start()
    with pytest.raises(OSError, match="Bad CRC-32"):
        source.read(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_that_python_unpacks_without_bound_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w", method) as archive:
        archive.writestr("a.png", bytes(1000))
    with pytest.raises(OSError, match="a method other than deflate"):
        open_zip(tmp_path / "d.zip").read(0)


def test_a_damaged_zip_member_is_a_bad_image(tmp_path: Path) -> None:
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(range(256)) * 9)
    raw = bytearray(path.read_bytes())
    raw[40:48] = b"\xff" * 8
    path.write_bytes(raw)
    with pytest.raises(OSError):
        open_zip(path).read(0)


def _tar(path: Path, *members: tarfile.TarInfo) -> Path:
    with path.open("wb") as file:
        for member in members:
            file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(1024))
    return path


def _member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.type = kind
    return member


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
@pytest.mark.parametrize("size", [2**60, -512])
def test_a_tar_header_of_absurd_size_is_an_error(tmp_path: Path, kind: bytes, size: int) -> None:
    path = _tar(tmp_path / "d.tar", _member("a.jpg", size, kind))
    with pytest.raises((ValueError, OSError)):
        source = open_source(path)
        source.read(0)


def test_a_sparse_tar_member_is_left_out(tmp_path: Path) -> None:
    path = _tar(tmp_path / "d.tar", _member("holes.jpg", 0, tarfile.GNUTYPE_SPARSE), _member("a.jpg", 0))
    source = open_source(path)
    assert [source.name(i) for i in range(len(source))] == [f"{path}:a.jpg"]


def test_a_cut_tar_member_is_a_bad_image(tmp_path: Path) -> None:
    path = _tar(tmp_path / "d.tar", _member("a.jpg", 1024))
    source = open_source(path)
    os.truncate(path, 700)
    with pytest.raises(OSError, match="ends within this image"):
        source.read(0)


def _idx(*shape: int) -> bytes:
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)


def test_an_idx_file_is_unpacked_no_further_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "t-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(_idx(2, 2, 2) + bytes(2**26)))
    with pytest.raises(ValueError, match=r"holds more bytes, its header says \(2, 2, 2\)"):
        open_source(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (gzip.compress(_idx(2**20, 2**12, 2**12), mtime=0), "bytes of pixels, more than"),
        (gzip.compress(_idx(2**31, 1, 1), mtime=0), "more than 33,554,432 entries"),
        (gzip.compress(_idx(1, 0, 5), mtime=0), "its header says"),
        (gzip.compress(_idx(1, 1, 1), mtime=0)[:10] + b"\xff" * 30, "can't be read"),
    ],
)
def test_idx_headers_that_lie_are_errors(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "t-images-idx3-ubyte.gz"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        open_source(path)


def test_a_list_can_not_make_the_loader_read_a_device_or_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "good.jpg").write_bytes(b"x")
    (tmp_path / "l.txt").write_text("good.jpg\npipe.jpg\n/dev/zero 1\n".replace(" 1", ".jpg\n/dev/zero"))
    (tmp_path / "l.csv").write_text("good.jpg\n/dev/zero\npipe.jpg\n")
    source = open_source(tmp_path / "l.csv")
    for index in (0, 1) if len(source) == 2 else (1, 2):
        with pytest.raises(OSError, match="not a regular file"):
            source.read(index)


@pytest.mark.parametrize("raw", [b"\xff\x00bad", b"\xff\xfeodd", b"\xff\xfe\0\0", b'"' + b"x" * 200_000 + b'"\n'])
def test_a_list_that_is_no_text_is_an_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "l.csv").write_bytes(raw)
    with pytest.raises(ValueError, match="not a list in UTF-8 text"):
        open_source(tmp_path / "l.csv")


def test_an_index_that_unpacks_to_far_more_is_refused() -> None:
    file = io.BytesIO()
    np.savez_compressed(file, names=np.zeros(2**23, np.uint8))
    with pytest.raises(ValueError, match="bytes that unpack to"):
        load_index(file.getvalue(), "x")


def test_a_pattern_of_absurdly_many_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="names more than 1,000,000 shards"):
        expand_pattern("a-{0..999999999999}.tar")


def test_urls_that_render_templates_or_chain_are_refused() -> None:
    for url in ("reference::file:///x.json", "reference://x", "zip://a::file:///b.zip", "simplecache::s3://b/x"):
        with pytest.raises(ValueError, match="not a url that mocokit reads"):
            open_source(url)


def test_postscript_is_no_image_whatever_its_name() -> None:
    """Pillow would hand it to Ghostscript, which runs it."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"
    with pytest.raises(DecodeError, match="not an image in a known format"):
        decode(eps, max_image_px=1000)


def test_a_jpeg_of_absurdly_many_scans_is_refused(photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mocokit.data.decode.jpeg.MAX_SCANNED_PX", 40 * 150 * 100)
    file = io.BytesIO()
    photograph.save(file, "JPEG", progressive=True)
    raw = file.getvalue()
    assert read_jpeg_header(raw) is not None
    last = raw.rindex(b"\xff\xda")
    bomb = raw[:last] + raw[last:-2] * 40
    assert read_jpeg_header(bomb) is None
    with pytest.raises(DecodeError, match="absurdly many scans"):
        decode(bomb, max_image_px=10**6)


def test_a_jpeg_of_absurd_size_with_exif_is_an_image_error(photograph: Image.Image) -> None:
    """Before: reading its orientation raised DecompressionBombError, which nobody caught."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph.save(file, "JPEG", exif=exif)
    raw = bytearray(file.getvalue())
    start = raw.index(b"\xff\xc0") + 5
    raw[start : start + 4] = struct.pack(">HH", 65000, 65000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_jpeg_header(bytes(raw))
    with pytest.raises(DecodeError):
        decode(bytes(raw), max_image_px=10**6)


def test_pixels_of_absurd_size_are_refused() -> None:
    with pytest.raises(DecodeError, match="100x100 pixels, more than"):
        decode(np.zeros((100, 100), np.uint8), max_image_px=9999)


def test_a_checkpoint_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step_000000001.pt"
    torch.save({"step": 1, "x": torch.zeros(2**20)}, path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert load_checkpoint(path)["step"] == 1
    with pytest.raises(CheckpointError, match="its parts are compressed"):
        load_checkpoint(tmp_path / "b.pt")


CARD = {
    "arch": "resnet10_w16",
    "stem": "small",
    "image_size": 32,
    "eval_crop_ratio": 1.0,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "step": 1,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "timm/vit_giant_patch14_224", "stem": "imagenet"}, "its weights are not those of"),
        ({"image_size": 10**9}, "damaged card"),
        ({"mean": 3}, "damaged card"),
        ({"surprise": 3}, "damaged card"),
        ({"arch": 7}, "damaged card"),
    ],
)
def test_a_backbone_file_can_not_ask_for_more_than_it_holds(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "b.safetensors", {"mocokit": json.dumps(CARD | changes)})
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path / "b.safetensors")


def test_a_config_neither_nests_without_bound_nor_starts_an_army() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        from_toml("x = " + "[" * 100_000)
    with pytest.raises(ValueError, match="more than"):
        from_toml("#" * (2**20 + 1))
    with pytest.raises(ValueError, match=r"data\.workers"):
        from_toml("[data]\nworkers = 1000000\n")
    assert from_toml("") == Config()


def test_annotations_that_define_entities_are_refused(tmp_path: Path) -> None:
    lists = tmp_path / "VOC2007" / "ImageSets" / "Main"
    annotations = tmp_path / "VOC2007" / "Annotations"
    lists.mkdir(parents=True)
    annotations.mkdir()
    (lists / "trainval.txt").write_text("a\n")
    (annotations / "a.xml").write_text('<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>')
    with pytest.raises(ValueError, match="declares a document type"):
        open_voc(tmp_path, ["2007_trainval"])
