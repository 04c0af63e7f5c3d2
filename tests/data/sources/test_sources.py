import gzip
import io
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mocokit.data.sources.open_source import open_source

JPEG = b"\xff\xd8\xff some bytes; sources do not look inside"


def _write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG + name.encode())


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    _write(tmp_path, "b.JPG", "a.png", "notes.txt", ".hidden.png")
    source = open_source(tmp_path)
    assert [Path(source.name(i)).name for i in range(len(source))] == ["a.png", "b.JPG"]
    assert source.labels is None
    assert source.read(0) == JPEG + b"a.png"


def test_class_folders_give_labels(tmp_path: Path) -> None:
    _write(tmp_path, "photos/dog/1.jpg", "photos/cat/deep/er/2.webp", "photos/cat/3.tiff", "photos/dog/4.bmp")
    source = open_source(tmp_path)
    assert source.class_names == ("cat", "dog"), "below what all paths share"
    assert source.labels == (0, 0, 1, 1)


def test_images_beside_folders_mean_no_labels(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg", "sub/b.jpg")
    assert open_source(tmp_path).labels is None


def test_a_link_to_a_parent_does_not_loop(tmp_path: Path) -> None:
    _write(tmp_path, "x/a.jpg")
    (tmp_path / "x" / "up").symlink_to(tmp_path)
    assert len(open_source(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("l.txt", "a b.jpg\n# comment\n\nc.png\n", None),
        ("l.txt", "a b.jpg 3\nc.png 12\n", (1, 0)),
        ("l.csv", "path,label\na b.jpg,cat\nc.png,dog\n", (0, 1)),
        ("l.csv", "a b.jpg\nc.png\n", None),
        ("l.tsv", "a b.jpg\tcat\nc.png\tcat\n", (0, 0)),
    ],
)
def test_lists_with_and_without_labels(tmp_path: Path, name: str, text: str, labels: tuple[int, ...] | None) -> None:
    _write(tmp_path, "a b.jpg", "c.png")
    (tmp_path / name).write_text(text)
    source = open_source(tmp_path / name)
    assert source.labels == labels
    assert [source.read(i) for i in (0, 1)] == [JPEG + b"a b.jpg", JPEG + b"c.png"]


def test_zip_and_tar_are_read_in_place(tmp_path: Path) -> None:
    _write(tmp_path / "in", "cat/1.jpg", "dog/2.jpg", "__MACOSX/cat/1.jpg", "readme.md")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as z, tarfile.open(tmp_path / "d.tar", "w") as t:
        for path in sorted((tmp_path / "in").rglob("*.*")):
            z.write(path, path.relative_to(tmp_path / "in"))
            t.add(path, path.relative_to(tmp_path / "in"))
    for archive in ("d.zip", "d.tar"):
        source = open_source(tmp_path / archive)
        assert (len(source), source.labels, source.class_names) == (2, (0, 1), ("cat", "dog"))
        assert source.read(1) == JPEG + b"dog/2.jpg"
        assert source.name(1) == f"{tmp_path / archive}:dog/2.jpg"


@pytest.mark.parametrize("archive", ["zip", "tar"])
def test_an_archive_that_was_read_can_be_sent_to_a_spawned_worker(tmp_path: Path, archive: str) -> None:
    """Before: "cannot pickle '_io.BufferedReader' object" once an image of a zip file was read."""
    _write(tmp_path / "in", "a.jpg")
    path = tmp_path / f"d.{archive}"
    shutil.make_archive(str(tmp_path / "d"), archive, tmp_path / "in")
    source = open_source(path)
    raw = source.read(0)
    assert pickle.loads(pickle.dumps(source)).read(0) == raw


def test_archive_members_that_would_escape_stay_inside(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as t:
        for name in ("../../evil.jpg", "good.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 3
            t.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link.jpg")
        link.type = tarfile.SYMTYPE
        link.linkname = "/etc/passwd"
        t.addfile(link)
    source = open_source(tmp_path / "evil.tar")
    assert [source.name(i) for i in range(len(source))] == [f"{tmp_path / 'evil.tar'}:good.jpg"]
    assert source.read(0) == b"abc"
    assert [path.name for path in tmp_path.iterdir()] == ["evil.tar"]


def test_a_zip_bomb_member_is_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mocokit.data.sources.limits.MAX_IMAGE_BYTES", 5000)
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a.png", bytes(10_000))
    with pytest.raises(OSError, match="10000 bytes, more than 5000"):
        open_source(tmp_path / "d.zip").read(0)


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_with_labels_beside_them(tmp_path: Path, packed: bool) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    labels = np.array([9, 0, 9, 3], np.uint8)
    suffix, pack = (".gz", gzip.compress) if packed else ("", bytes)
    (tmp_path / f"t-images-idx3-ubyte{suffix}").write_bytes(pack(_idx(images)))
    assert open_source(tmp_path / f"t-images-idx3-ubyte{suffix}").labels is None
    (tmp_path / f"t-labels-idx1-ubyte{suffix}").write_bytes(pack(_idx(labels)))
    source = open_source(tmp_path / f"t-images-idx3-ubyte{suffix}")
    assert source.labels == (2, 0, 2, 1)
    assert np.array_equal(source.read(3), images[3])


def _cut_idx(path: Path) -> None:
    path.write_bytes(_idx(np.zeros((4, 3, 2), np.uint8))[:-5])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("nothing", lambda path: None, "no such file or folder"),
        ("empty", lambda path: path.mkdir(), "no images below this folder; mocokit reads bmp, jpeg"),
        ("texts", lambda path: _write(path, "a.txt", "b.md"), "no images below this folder"),
        ("idx", lambda path: _write(path, "t-images-idx3-ubyte.gz"), "did you mean the file t-images-idx3-ubyte.gz"),
        ("none.txt", lambda path: path.write_text("# only a comment\n"), "the list names no images"),
        ("gone.txt", lambda path: path.write_text("gone.jpg\n"), "none of the first 1 paths exists"),
        ("bad.zip", lambda path: path.write_bytes(b"PK nonsense"), "not a readable zip file"),
        ("bad.tar", lambda path: path.write_bytes(b"x" * 2000), "not a readable uncompressed tar"),
        ("cut-images-idx3-ubyte", _cut_idx, "its header says"),
        ("bad-images-idx3-ubyte.gz", lambda path: path.write_bytes(b"no gzip"), "can't be read"),
        ("photo.jpg", lambda path: path.write_bytes(JPEG), "not a kind of data that mocokit reads"),
    ],
)
def test_an_error_of_opening_names_its_cause(tmp_path: Path, name: str, make: object, message: str) -> None:
    make(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / name)


def test_a_half_labelled_list_is_an_error(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "l.csv").write_text("a.jpg,cat\nb.jpg\n")
    with pytest.raises(ValueError, match=r"b.jpg has no label but others do"):
        open_source(tmp_path / "l.csv")
