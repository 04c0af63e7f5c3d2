"""Nothing is left out without a word: the line about a data set, and the names that it keeps."""

import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mocokit.data.decode.decode import decode
from mocokit.data.sources.left_out import describe_source, left_out_of, names_left_out, require_few_lost
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.sources import ImageSource
from mocokit.data.sources.suffixes import readable_suffixes, reads_avif


def _write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_the_line_counts_images_and_classes(tmp_path: Path) -> None:
    _write(tmp_path, *(f"cat/{i}.jpg" for i in range(3)), *(f"dog/{i}.JPEG" for i in range(2)))
    assert describe_source(open_source(tmp_path)) == "5 images in 2 classes (cat 3, dog 2)"


def test_of_many_classes_the_line_shows_three(tmp_path: Path) -> None:
    _write(tmp_path, *(f"{name}/1.png" for name in "abcdefgh"))
    assert describe_source(open_source(tmp_path)) == "8 images in 8 classes (a 1, b 1, c 1, ...)"


@pytest.mark.parametrize("suffix", [".heic", ".HEIF", ".jxl", ".jp2", ".CR2", ".dng", ".exr", ".mp4"])
def test_images_without_a_reader_are_counted_with_a_remedy(tmp_path: Path, suffix: str) -> None:
    _write(tmp_path, "a.jpg", f"b{suffix}", f"c{suffix}")
    source = open_source(tmp_path)
    assert f"left out: 2 {suffix.lower()} files (" in describe_source(source)
    assert sum(kind.num_lost for kind in left_out_of(source)) == 2
    assert any(f"b{suffix}" in line for line in names_left_out(source))
    with pytest.raises(ValueError, match=r"^data.max_bad_share=0.5: 2 of 3 images are left out: 2 .* --data.max-bad-s"):
        require_few_lost(source, max_share=0.5)
    require_few_lost(source, max_share=0.7)


def test_raw_files_of_a_camera_beside_their_jpegs_are_not_lost(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path, "a.jpg", "a.CR2", "b.jpg", "b.CR2"))
    assert "2 .cr2 files" in describe_source(source)
    require_few_lost(source, max_share=0.0)


def test_without_a_readable_image_the_error_names_the_others(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no images below this folder; .* found: 2 .heic files \(not read; convert"):
        open_source(_write(tmp_path, "a.heic", "b.heic"))


def test_hidden_images_other_files_and_archives_are_told(tmp_path: Path) -> None:
    _write(
        tmp_path, "a.jpg", ".b.jpg", ".thumbs/c.png", "notes.txt", "x.json", "y.json", "more.zip", "n.tar.gz", "bare"
    )
    _write(tmp_path, ".git/config")
    line = describe_source(open_source(tmp_path))
    assert "2 hidden images (.b.jpg, .thumbs/c.png: " in line
    assert "1 .zip file (not opened here" in line
    assert "1 .tar.gz file (" in line
    assert "4 other files (.json 2, " in line


def test_a_link_that_leads_nowhere_and_a_class_without_images_are_told(tmp_path: Path) -> None:
    _write(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "bird").symlink_to(tmp_path / "gone")
    (tmp_path / "fish").mkdir()
    line = describe_source(open_source(tmp_path))
    assert "1 broken link (bird)" in line
    assert "1 folder without images (fish)" in line


def test_a_folder_that_may_not_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, who may list every folder."""
    _write(tmp_path, "bird/1.jpg", "cat/1.jpg", "dog/1.jpg")
    real = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "bird":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    line = describe_source(open_source(tmp_path))
    assert "in 2 classes (cat 1, dog 1)" in line
    assert "1 unreadable folder (bird: Permission denied)" in line


def _zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return path


def _tarred(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(folder, ".")
    return path


@pytest.mark.parametrize(("suffix", "pack"), [(".zip", _zipped), (".tar", _tarred)])
def test_archives_tell_what_they_leave_out(tmp_path: Path, suffix: str, pack: Callable[[Path, Path], Path]) -> None:
    _write(tmp_path / "in", "cat/1.jpg", "dog/1.jpg", "dog/2.heic", "__MACOSX/dog/1.jpg", "readme.md")
    line = describe_source(open_source(pack(tmp_path / "in", tmp_path / f"d{suffix}")))
    assert line.startswith("2 images in 2 classes (cat 1, dog 1); left out: 1 .heic file (")
    assert "1 hidden image" in line
    assert "1 other file (.md 1)" in line


def test_both_entries_of_a_zip_file_with_one_name_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a.jpg", b"first")
        archive.writestr("b.jpg", b"b")
        archive.writestr("a.jpg", b"second")
    source = open_source(tmp_path / "d.zip")
    assert [source.read(index) for index in range(3)] == [b"first", b"second", b"b"]


def test_a_source_of_ones_own_need_not_say_anything(photos: Path) -> None:
    class Own(ImageSource):
        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> bytes:
            return b""

    assert describe_source(Own()) == "1 image without labels"


FORMATS = {
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".gif": "GIF",
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".JPG": "JPEG",
    ".BMP": "BMP",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".apng": "PNG",
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_suffix_that_is_listed_is_decoded(tmp_path: Path, suffix: str, photograph: Image.Image) -> None:
    image = photograph.convert({".pgm": "L", ".pbm": "1"}.get(suffix, "RGB"))
    image.save(tmp_path / f"a{suffix}", FORMATS[suffix])
    source = open_source(tmp_path)
    assert decode(source.read(0), max_image_px=10**6).size == photograph.size


@pytest.mark.skipif(not reads_avif(), reason="this Pillow has no AVIF")
def test_avif_is_read_where_pillow_reads_it_and_the_formats_are_told(tmp_path: Path, photograph: Image.Image) -> None:
    photograph.save(tmp_path / "a.avif")
    photograph.save(tmp_path / "b.gif", save_all=True, append_images=[photograph.rotate(90)])
    source = open_source(tmp_path)
    assert {decode(source.read(index), max_image_px=10**6).size for index in (0, 1)} == {photograph.size}
    line = describe_source(source)
    assert line == "2 images without labels; formats: .avif 1, .gif 1; of each .gif the first frame"


def test_without_avif_the_remedy_is_a_newer_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mocokit.data.sources.suffixes.reads_avif", lambda: False)
    readable_suffixes.cache_clear()
    try:
        line = describe_source(open_source(_write(tmp_path, "a.jpg", "b.avif")))
    finally:
        readable_suffixes.cache_clear()
    assert "left out: 1 .avif file (pip install -U 'pillow>=11.3')" in line
