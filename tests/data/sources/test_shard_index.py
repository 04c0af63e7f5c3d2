"""The index of shards: our file, and the index of shards that came without one."""

import io
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.shard_index import ShardIndex, load_index
from mocokit.data.sources.shards import ShardSource
from mocokit.data.sources.sources import ImageSource


def _images(source: ImageSource) -> list[object]:
    return [source.read(index) for index in range(len(source))]


def _index(**changes: Any) -> bytes:
    parts: dict[str, Any] = {
        "names": ("a", "b"),
        "members": np.array([[0, 0], [512, 1024], [9, 9], [-1, -1]], np.int64),
        "labels": (0, 1),
        "class_names": ("x", "y"),
        "shard_bytes": (2048,),
    }
    file = io.BytesIO()
    ShardIndex(**{**parts, **changes}).save(file)
    return file.getvalue()


def _members(shard: int, offset: int, size: int) -> Any:
    return np.array([[0, shard], [512, offset], [9, size], [-1, -1]], np.int64)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not a usable index"),
        (b"no archive", "not a usable index"),
        (_index()[:-40], "not a usable index"),
        (_index(names=("a",)), "its parts differ in length"),
        (_index(names=()), "its parts differ in length"),
        (_index(members=_members(1, 512, 9)), "a shard that does not exist"),
        (_index(members=_members(-1, 512, 9)), "a shard that does not exist"),
        (_index(members=_members(0, 2040, 9)), "an image lies outside its shard"),
        (_index(members=_members(0, -9, 9)), "an image lies outside its shard"),
        (_index(members=_members(0, 2**63 - 1, 2**63 - 1)), "an image lies outside its shard"),
        (_index(labels=(0, 2)), "its labels don't fit"),
        (_index(labels=(0,)), "its labels don't fit"),
    ],
)
def test_an_inconsistent_index_is_an_error(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data=x: .*{message}"):
        load_index(raw, "x")


def test_an_index_never_runs_code_and_a_newer_format_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    np.savez(file, format=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_index(file.getvalue(), "x")
    monkeypatch.setattr("mocokit.data.sources.shard_index.FORMAT", 2)
    newer = _index()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 2, this mocokit reads 1; use a newer mocokit"):
        load_index(newer, "x")


def make_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as archive:
        for name, raw in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))


def make_foreign_shards(folder: Path) -> None:
    make_tar(
        folder / "train-0.tar",
        {"0.cls": b"10", "0.jpg": b"first", "0.seg.png": b"mask", "0.json": b"{}", "1.jpg": b"second", "1.cls": b"9\n"},
    )
    make_tar(folder / "train-1.tar", {"0.jpg": b"third", "0.cls": b"10", "._0.jpg": b"leftover"})


def test_shards_of_other_tools_open_without_an_index(tmp_path: Path) -> None:
    make_foreign_shards(tmp_path)
    source = open_source(f"{tmp_path}/train-{{0..1}}.tar")
    assert _images(source) == [b"first", b"second", b"third"]
    assert (source.labels, source.class_names) == ((1, 0, 1), ("00009", "00010"))
    assert isinstance(source, ShardSource)
    assert source.names == ("00000/0.jpg", "00000/1.jpg", "00001/0.jpg"), "numbers start again in each shard"


def test_without_class_files_folders_give_labels(tmp_path: Path) -> None:
    make_tar(tmp_path / "a-0.tar", {"dog/1.jpg": b"1", "dog/1.cls": b"3", "cat/1.jpg": b"2"})
    source = open_source(f"{tmp_path}/a-{{0..0}}.tar")
    assert (source.labels, source.class_names) == ((1, 0), ("cat", "dog"))


def test_shards_of_other_tools_open_over_the_network(tmp_path: Path) -> None:
    make_foreign_shards(tmp_path)
    fsspec.filesystem("memory").put(f"{tmp_path}/", "/foreign/", recursive=True)
    source = open_source("memory://foreign/train-{0..1}.tar")
    local = open_source(f"{tmp_path}/train-{{0..1}}.tar")
    assert _images(source) == _images(local) == [b"first", b"second", b"third"]
    assert (source.labels, source.class_names) == (local.labels, local.class_names)
