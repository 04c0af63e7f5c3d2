"""Tar files as people have them: with links, with tar files inside, compressed."""

import io
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from mocokit.data.sources.left_out import describe_source
from mocokit.data.sources.open_source import open_source


def _tar_bytes(members: Mapping[str, bytes | str], mode: str = "w") -> bytes:
    """Return a tar file; bytes are a file, `-> x` a symbolic link, `=> x` a hard link."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type = tarfile.SYMTYPE if content.startswith("->") else tarfile.LNKTYPE
                member.linkname = content[3:]
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _write(path: Path, members: Mapping[str, bytes | str], mode: str = "w") -> Path:
    path.write_bytes(_tar_bytes(members, mode))
    return path


def _read(path: Path) -> dict[str, object]:
    source = open_source(path)
    return {source.name(index).partition(":")[2]: source.read(index) for index in range(len(source))}


def test_links_inside_an_archive_are_read_as_the_files_that_they_lead_to(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "d.tar",
        {
            "cat/2.jpg": "=> cat/1.jpg",  # a link may come before its file
            "cat/1.jpg": b"one",
            "cat/3.jpg": "=> ./cat/1.jpg",
            "dog/1.jpg": "-> ../cat/1.jpg",
            "dog/2.jpg": "-> 1.jpg",  # a link to a link
            "dog/3.jpg": "=> blobs/abc",  # a target without an image's name
            "blobs/abc": b"three",
        },
    )
    assert _read(path) == {
        "cat/1.jpg": b"one",
        "cat/2.jpg": b"one",
        "cat/3.jpg": b"one",
        "dog/1.jpg": b"one",
        "dog/2.jpg": b"one",
        "dog/3.jpg": b"three",
    }
    assert open_source(path).class_names == ("cat", "dog")


@pytest.mark.parametrize("target", ["-> /etc/passwd", "-> ../../etc/passwd", "=> gone.jpg", "-> loop.jpg", "-> ."])
def test_links_that_lead_out_or_nowhere_are_left_out_by_name(tmp_path: Path, target: str) -> None:
    path = _write(tmp_path / "d.tar", {"a.jpg": b"a", "loop.jpg": target})
    assert _read(path) == {"a.jpg": b"a"}
    assert "left out: 1 link (loop.jpg: " in describe_source(open_source(path))


def test_a_tar_of_tars_is_read_as_imagenet_is_distributed(tmp_path: Path) -> None:
    inner = {
        name: _tar_bytes({f"{name}_{number}.JPEG": f"{name} {number}".encode() * 200 for number in range(3)})
        for name in ("n01440764", "n01443537")
    }
    path = _write(tmp_path / "ILSVRC2012_img_train.tar", {f"{name}.tar": raw for name, raw in inner.items()})
    source = open_source(path)
    assert (len(source), source.class_names) == (6, ("n01440764", "n01443537"))
    assert source.labels == (0, 0, 0, 1, 1, 1)
    assert source.name(4) == f"{path}:n01443537/n01443537_1.JPEG"
    assert source.read(4) == b"n01443537 1" * 200


def test_inner_tar_files_may_hold_links_and_folders_and_deeper_ones_are_told(tmp_path: Path) -> None:
    inner = _tar_bytes({"x/1.jpg": b"1", "x/2.jpg": "=> x/1.jpg", "deep.tar": _tar_bytes({"3.jpg": b"3"})})
    path = _write(tmp_path / "d.tar", {"parts/a.tar": inner, "readme.txt": b""})
    assert _read(path) == {"parts/a/x/1.jpg": b"1", "parts/a/x/2.jpg": b"1"}
    line = describe_source(open_source(path))
    assert "1 .tar file (" in line
    assert "1 other file (.txt 1)" in line


def test_a_damaged_inner_tar_is_named(tmp_path: Path) -> None:
    for raw in (b"no tar" * 200, _tar_bytes({"1.jpg": b"1" * 3000})[:1500]):
        path = _write(tmp_path / "d.tar", {"good.tar": _tar_bytes({"1.jpg": b"1"}), "n01.tar": raw})
        with pytest.raises(ValueError, match=r"n01\.tar in it is not a readable uncompressed tar|no images"):
            source = open_source(path)
            source.read(len(source) - 1)
            raise ValueError("no images")  # a tar that is cut in its last member opens; the image is then bad


def test_tar_files_beside_images_are_told(tmp_path: Path) -> None:
    path = _write(tmp_path / "d.tar", {"1.jpg": b"1", "more.tar": _tar_bytes({"2.jpg": b"2"})})
    assert "left out: 1 .tar file (not opened here" in describe_source(open_source(path))


@pytest.mark.parametrize(
    ("name", "mode", "command"),
    [
        ("d.tar.gz", "w:gz", r"gunzip -k .*/d.tar.gz"),
        ("d.tgz", "w:gz", r"gunzip -k .*/d.tgz"),
        ("d.tar.bz2", "w:bz2", "bunzip2 -k .*/d.tar.bz2"),
        ("d.tar.xz", "w:xz", "xz -dk .*/d.tar.xz"),
        ("d.txz", "w:xz", "xz -dk .*/d.txz"),
        ("wrong.tar", "w:xz", "xz -dc < .*/wrong.tar"),  # by its content, whatever its name
        ("wrong.bin", "w:gz", "gunzip -dc < .*/wrong.bin"),
    ],
)
def test_a_compressed_tar_gets_the_command_that_unpacks_it(tmp_path: Path, name: str, mode: str, command: str) -> None:
    with pytest.raises(ValueError, match=rf"compressed, so that its images can't be read in any order.* {command}"):
        open_source(_write(tmp_path / name, {"cat/1.jpg": b"1"}, mode))


@pytest.mark.parametrize(
    ("name", "raw", "command"),
    [
        ("d.7z", b"7z\xbc\xaf\x27\x1c", "7z x .*/d.7z"),
        ("d.rar", b"Rar!\x1a\x07\0", "unrar x .*/d.rar"),
        ("d.tar.zst", b"\x28\xb5\x2f\xfd", "zstd -dk"),
    ],
)
def test_other_archives_get_theirs(tmp_path: Path, name: str, raw: bytes, command: str) -> None:
    (tmp_path / name).write_bytes(raw + bytes(100))
    with pytest.raises(ValueError, match=command):
        open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("train-000.tar", "train-001.tar"), r"'.*/train-\{000\.\.001\}\.tar'"),
        (("n01440764.tar", "n01443537.tar"), r"2 tar files, .* tar -xf"),
        (("photos.zip",), "did you mean the file photos.zip"),
        (("cifar-10-python.tar.gz",), r"did you mean .*/cifar-10-python\.tar\.gz"),
        (("a.7z",), r"found: 1 \.7z file \("),
    ],
)
def test_a_folder_of_archives_gets_a_hint(tmp_path: Path, names: tuple[str, ...], hint: str) -> None:
    for name in names:
        _write(tmp_path / name, {"1.jpg": b"1"})
    with pytest.raises(ValueError, match=rf"no images below this folder; .*{hint}"):
        open_source(tmp_path)


def test_the_command_can_be_pasted_although_the_path_has_spaces(tmp_path: Path) -> None:
    path = _write(tmp_path / "my photos.tar.gz", {"1.jpg": b"1"}, "w:gz")
    with pytest.raises(ValueError, match=f"gunzip -k '{path}'"):
        open_source(path)


@pytest.mark.parametrize("shard", [False, True])
def test_an_archive_appended_to_another_is_told(shard: bool, tmp_path: Path) -> None:
    """Before: the images of the second were dropped without a word."""
    classes: dict[str, bytes | str] = {"1.cls": b"0", "2.cls": b"1"} if shard else {}
    first = _tar_bytes({"1.jpg": b"1", "2.jpg": b"2", **classes})
    path = tmp_path / "d.tar"
    path.write_bytes(first + _tar_bytes({"3.jpg": b"3"}))
    told = describe_source(open_source(path))
    assert told.startswith("2 images")
    assert "left out: 1 tar file behind the end of the first" in told
    path.write_bytes(first + bytes(20_000))  # padding
    assert "left out" not in describe_source(open_source(path)).replace("left out: 2 other files (.cls 2)", "")


def test_a_name_that_a_tar_file_holds_twice_is_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        for content in (b"old", b"new"):  # as `tar -r` adds a changed file
            member = tarfile.TarInfo("cat/1.jpg")
            member.size = 3
            archive.addfile(member, io.BytesIO(content))
    assert "names repeated: 1, each counts as an image" in describe_source(open_source(tmp_path / "d.tar"))


@pytest.mark.parametrize("program", ["gzip", "bzip2", "xz"])
def test_a_compressed_archive_named_tar_is_unpacked_by_the_command_told(program: str, tmp_path: Path) -> None:
    """Before: `gunzip -k d.tar`, which refuses a file without the suffix .gz."""
    path = _write(tmp_path / "my d.tar", {"a/1.jpg": b"1", "b/2.jpg": b"2"})
    path.write_bytes(subprocess.run([program, "-c", path], capture_output=True, check=True).stdout)
    with pytest.raises(ValueError, match="compressed") as raised:
        open_source(path)
    subprocess.run(str(raised.value).split("held: ")[-1].split("for example: ")[-1], shell=True, check=True)
    assert len(open_source(tmp_path / "unpacked_my d.tar")) == 2
