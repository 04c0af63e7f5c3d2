"""The files of a folder: found like a slow walk finds them, and remembered only as long as they stay."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mocokit.data.sources import folder_cache
from mocokit.data.sources.folder import open_folder
from mocokit.data.sources.identity import describe_change, identify
from mocokit.data.sources.left_out import describe_source
from mocokit.data.sources.own_output import is_own_output
from mocokit.data.sources.sources import FileSource
from mocokit.data.sources.suffixes import is_image_name
from mocokit.randomness import Purpose, permutation

ODD = (
    b"caf\xe9/not_utf8.jpg",
    b"caf\xc3\xa9/composed.jpg",
    b"cafe\xcc\x81/decomposed.jpg",
    b"\xff/\xff.JPG",
    b"x.y.z/a.b.c.Jpeg",
    b"x.y.z/.hidden.jpg",
    b"x.y.z/trailing.",
    b"x.y.z/noext",
    b"x.y.z/jpg",
    b"x.y.z/a.jpg.bak",
    b"x.y.z/..jpg",
    b".git/a.jpg",
    b"__MACOSX/a.jpg",
    b"a.jpg/b.png",
    b"a/b/c/d.gif",
    b"a-b/c.gif",
    b"new\nline/a b.tif",
    b"run/config.toml",
    b"run/checkpoints/a.png",
    b"run/views.png",
    b"table/table.json",
    b"table/table.png",
    b"odd/table.png",
)
"""Names for the files of a folder; of some file systems, not all can be written."""


def _write(root: Path, *names: bytes | str) -> Path:
    for name in map(os.fsencode, names):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name)
    return root


def _slow_walk(root: Path) -> list[str]:
    """Return the images below a folder without links, by pathlib, one file after the other."""
    found = list[str]()
    for path in root.rglob("*"):
        above = [root.joinpath(*path.relative_to(root).parts[:depth]) for depth in range(1, len(path.parts))]
        own = any(folder.is_dir() and is_own_output({inner.name for inner in folder.iterdir()}) for folder in above)
        name = path.relative_to(root).as_posix()
        if path.is_file() and is_image_name(name) and not own:
            found.append(name)
    return sorted(found)


def test_odd_names_are_found_like_a_slow_walk_finds_them(tmp_path: Path) -> None:
    root = _write(tmp_path / "photos", *ODD)
    source = open_folder(root)
    assert list(source.names) == _slow_walk(root)
    assert [source.name(index) for index in range(len(source))] == [str(root / name) for name in source.names]
    assert "hidden images" in describe_source(source)
    assert "2 folders that mocokit wrote" in describe_source(source)


def test_a_folder_that_links_reach_twice_is_listed_once(tmp_path: Path) -> None:
    root = _write(tmp_path / "photos", "real/cat/0.jpg", "real/dog/1.jpg")
    (root / "real/dog/loop").symlink_to("..")
    (root / "real/cat/out.jpg").symlink_to(_write(tmp_path / "other", "2.jpg") / "2.jpg")
    (root / "lost").symlink_to("nowhere")
    source = open_folder(root)
    assert list(source.names) == ["real/cat/0.jpg", "real/cat/out.jpg", "real/dog/1.jpg"]
    assert "1 broken link (lost)" in describe_source(source)
    through = tmp_path / "through"
    through.symlink_to(root)
    assert open_folder(through).names == source.names


Listed = Callable[[], int]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Listed:
    """Keep the lists of small and fresh folders too; returns the number of folders listed since the last call."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_cache, "MIN_FILES", 1)
    monkeypatch.setattr(folder_cache, "SETTLED_NS", 0)
    counts = [0]
    scandir = os.scandir

    def counted(place: str) -> object:
        counts[0] += 1
        return scandir(place)

    def take() -> int:
        number, counts[0] = counts[0], 0
        return number

    monkeypatch.setattr(os, "scandir", counted)
    return take


def _same(one: FileSource, other: FileSource) -> bool:
    return one == other and describe_source(one) == describe_source(other)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Return a folder of two classes of 20 images, with names that are not UTF-8 and files that are left out."""
    names = [f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(20)]
    root = _write(tmp_path / "photos", *names, b"cat/\xe9.jpg", "dog/a.heic", "dog/.b.jpg", "dog/notes.txt")
    time.sleep(0.02)  # the next change is in another tick of the file system's clock
    return root


def test_an_unchanged_folder_is_listed_once(classes: Path, listed: Listed) -> None:
    first = open_folder(classes)
    assert listed() == 3
    again = open_folder(classes)
    assert listed() == 0
    assert _same(first, again)
    assert identify(first).digest == identify(again).digest


def _add(root: Path) -> None:
    _write(root, "dog/new.jpg")


def _remove(root: Path) -> None:
    (root / "dog/3.jpg").unlink()


def _rename(root: Path) -> None:
    (root / "dog/3.jpg").rename(root / "dog/33.jpg")


def _add_folder(root: Path) -> None:
    _write(root, "owl/0.jpg")


def _exchange_folder(root: Path) -> None:
    """Put another folder in the place of one, whose times are older."""
    _write(root.parent, "other/0.jpg")
    os.utime(root.parent / "other", (1, 1))
    shutil.rmtree(root / "dog")
    (root.parent / "other").rename(root / "dog")


def _turn_back_times(root: Path) -> None:
    """Add a file and set the folder's time of modification back, as rsync and tar do."""
    before = (root / "dog").stat()
    _write(root, "dog/new.jpg")
    os.utime(root / "dog", ns=(before.st_atime_ns, before.st_mtime_ns))


def _make_own_output(root: Path) -> None:
    _write(root, "dog/config.toml", "dog/checkpoints/x")


def _link_folder(root: Path) -> None:
    (root / "owl").symlink_to(_write(root.parent / "owls", "0.jpg", "1.jpg"))


CHANGES = [_add, _remove, _rename, _add_folder, _exchange_folder, _turn_back_times, _make_own_output, _link_folder]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_listed_again(
    classes: Path, listed: Listed, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_folder(classes)
    change(classes)
    listed()
    now = open_folder(classes)
    assert listed() > 0
    assert now.names != before.names
    monkeypatch.setenv("XDG_CACHE_HOME", str(classes.parent / "empty"))
    assert _same(now, open_folder(classes))


def test_exchanged_bytes_leave_the_list_and_change_the_identity(classes: Path, listed: Listed) -> None:
    before = identify(open_folder(classes))
    listed()
    (classes / "dog/3.jpg").write_bytes(b"other")
    now = open_folder(classes)
    assert listed() == 0
    assert describe_change(before, identify(now)) == "41 images now: 1 with other content (dog/3.jpg)"


def test_lists_are_not_kept_where_the_times_of_folders_do_not_tell_all(
    classes: Path, listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_kept() -> bool:
        open_folder(classes)
        listed()
        open_folder(classes)
        kept = listed() == 0
        shutil.rmtree(classes.parent / "cache", ignore_errors=True)
        return kept

    assert is_kept()
    with monkeypatch.context() as patch:
        patch.setattr(folder_cache, "SETTLED_NS", 10**12)
        assert not is_kept(), "it changed a short time ago"
    with monkeypatch.context() as patch:
        patch.setattr(folder_cache, "FILE_SYSTEMS", frozenset())
        assert not is_kept(), "a file system that may not renew the times"
    with monkeypatch.context() as patch:
        patch.setattr(folder_cache, "MIN_FILES", 42)
        assert not is_kept(), "a small folder"
    with monkeypatch.context() as patch:
        patch.setattr(folder_cache, "readable_suffixes", lambda: frozenset({".jpg"}))
        open_folder(classes)
    listed()
    open_folder(classes)
    assert listed() > 0, "the list was made with other suffixes"
    (classes / "dog/link.jpg").symlink_to("3.jpg")
    assert not is_kept(), "a link's target can change"


def test_a_damaged_list_is_ignored(classes: Path, listed: Listed) -> None:
    expected = open_folder(classes)
    (place,) = (classes.parent / "cache/mocokit/folders").iterdir()
    whole = place.read_bytes()
    listed()
    for seed in range(60):
        cut, at, bit = permutation(seed, Purpose.SUBSET, len(whole))[:3].tolist()
        flipped = bytearray(whole)
        flipped[at] ^= 1 << bit % 8
        for raw in (whole[:cut], bytes(flipped)):
            place.write_bytes(raw)
            assert _same(open_folder(classes), expected), (seed, cut, at)
    assert listed() > 60


@pytest.mark.parametrize("place", ["/dev/null", "/proc"])
def test_a_home_that_can_not_be_written_costs_the_list_alone(
    classes: Path, listed: Listed, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    for _ in range(2):
        assert len(open_folder(classes)) == 41
        assert listed() == 3


def test_a_list_is_no_business_of_other_users(classes: Path, listed: Listed) -> None:
    open_folder(classes)
    (place,) = (classes.parent / "cache/mocokit/folders").iterdir()
    assert listed()
    assert place.stat().st_mode & 0o077 == 0
