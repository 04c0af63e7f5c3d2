"""WebDataset shards as other tools write them: dots in names, labels in .cls and .json, one shard by its path."""

import json
from pathlib import Path

import pytest

from mocokit.data.sources.left_out import describe_source
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.webdataset import sample_key
from tests.data.sources.test_shard_index import make_tar


def _facts(place: str | Path) -> tuple[list[object], tuple[int, ...] | None, tuple[str, ...]]:
    source = open_source(place)
    return [source.read(index) for index in range(len(source))], source.labels, source.class_names


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a/0.jpg", ("a/0", "jpg")),
        ("0.seg.png", ("/0", "seg.png")),
        ("video.0001.jpg", ("/video.0001", "jpg")),
        ("v.01.002.seg.png", ("/v.01.002", "seg.png")),
        ("a.b/c.jpg", ("a.b/c", "jpg")),
        ("0.12", ("/0", "12")),
    ],
)
def test_a_name_ends_at_the_first_dot_that_no_number_follows(name: str, key: tuple[str, str]) -> None:
    assert sample_key(name) == key


def test_numbered_frames_are_images_of_their_own(tmp_path: Path) -> None:
    make_tar(tmp_path / "f-0.tar", {f"v.{i:04d}.jpg": bytes([i]) for i in range(5)} | {"v.cls": b"7"})
    images, labels, classes = _facts(f"{tmp_path}/f-{{0..0}}.tar")
    assert images == [bytes([i]) for i in range(5)]
    assert (labels, classes) == ((0,) * 5, ("00007",))


def test_further_images_of_a_sample_are_told(tmp_path: Path) -> None:
    make_tar(tmp_path / "f-0.tar", {"0.jpg": b"a", "0.seg.png": b"b", "0.depth.png": b"c", "1.jpg": b"d", "1.txt": b""})
    source = open_source(f"{tmp_path}/f-{{0..0}}.tar")
    line = describe_source(source)
    assert "left out: 2 further images of samples (0.depth.png, 0.seg.png: " in line
    assert "1 other file (.txt 1)" in line
    assert len(source) == 2


def test_one_shard_by_its_path_has_the_labels_that_it_has_by_a_pattern(tmp_path: Path) -> None:
    make_tar(tmp_path / "w-0.tar", {"b.jpg": b"b", "b.cls": b"1", "a.jpg": b"a", "a.cls": b"0", "a.seg.png": b"mask"})
    by_path = _facts(tmp_path / "w-0.tar")
    assert by_path == _facts(f"{tmp_path}/w-{{0..0}}.tar") == ([b"b", b"a"], (1, 0), ("00000", "00001"))


def test_one_packed_shard_of_several_opens_by_its_path(tmp_path: Path) -> None:
    make_tar(tmp_path / "shard-00000.tar", {"0.jpg": b"a", "0.cls": b"1", "1.jpg": b"b", "1.cls": b"2"})
    (tmp_path / "shard-index.npz").write_bytes(b"describes three shards")
    assert _facts(tmp_path / "shard-00000.tar")[1] == (0, 1)


@pytest.mark.parametrize(
    ("metadata", "classes"),
    [
        ({"label": 3, "width": 48}, ("00003",)),
        ({"class": "cat"}, ("cat",)),
        ({"category": "cat", "caption": "a dog"}, ("cat",)),
        ({"caption": "a dog"}, ()),
        ({"label": [1, 2]}, ()),
        ({"label": True}, ()),
        (["cat"], ()),
    ],
)
def test_labels_in_metadata_count_where_there_are_no_class_files(
    tmp_path: Path, metadata: object, classes: tuple[str, ...]
) -> None:
    raw = json.dumps(metadata).encode()
    make_tar(tmp_path / "w-0.tar", {"0.jpg": b"a", "0.json": raw, "1.json": raw, "1.jpg": b"b"})
    assert _facts(f"{tmp_path}/w-{{0..0}}.tar")[2] == classes


def test_metadata_that_is_hostile_is_no_label(tmp_path: Path) -> None:
    make_tar(tmp_path / "w-0.tar", {"0.jpg": b"a", "0.json": b"[" * 60_000, "1.jpg": b"b", "1.json": b"{"})
    assert _facts(f"{tmp_path}/w-{{0..0}}.tar")[1] is None


def test_samples_without_a_class_file_are_named(tmp_path: Path) -> None:
    make_tar(tmp_path / "w-0.tar", {"0.jpg": b"a", "0.cls": b"1", "1.jpg": b"b"})
    source = open_source(f"{tmp_path}/w-{{0..0}}.tar")
    assert source.labels is None
    assert "(1 samples have a .cls or a label in .json, others, 1.jpg for one, have none)" in describe_source(source)
