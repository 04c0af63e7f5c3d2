"""Lists as other programs write them: encodings, quotes, and tables with more than two columns."""

from pathlib import Path

import pytest

from mocokit.data.sources.left_out import describe_source
from mocokit.data.sources.open_source import open_source, with_columns


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("cat/1.jpg", "cat/a b.jpg", "dog/é.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


ALL = [b"cat/1.jpg", b"cat/a b.jpg", "dog/é.jpg".encode()]


def _read(location: str | Path) -> tuple[list[object], tuple[str, ...]]:
    source = open_source(location)
    return [source.read(index) for index in range(len(source))], source.class_names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_lose_no_image(images: Path, encoding: str, newline: str) -> None:
    for name, text in (
        ("l.txt", "cat/1.jpg\ncat/a b.jpg\n\ndog/é.jpg"),
        ("l.csv", "cat/1.jpg,cat\ncat/a b.jpg,cat\n\ndog/é.jpg,dog\n"),
    ):
        mark = "\ufeff" if encoding.endswith("-bom") else ""
        raw = (mark + text.replace("\n", newline)).encode(encoding.removesuffix("-bom"))
        (images / name).write_bytes(raw)
        assert _read(images / name)[0] == ALL, name


def test_a_list_in_another_encoding_names_the_remedy(images: Path) -> None:
    (images / "l.txt").write_bytes("cat/1.jpg\ndog/é.jpg".encode("cp1252"))
    with pytest.raises(ValueError, match=r"not a list in UTF-8 text .* iconv -f WINDOWS-1252 -t UTF-8 l.txt"):
        open_source(images / "l.txt")


def test_utf_16_without_a_mark_is_refused_instead_of_misread(images: Path) -> None:
    (images / "l.txt").write_bytes("cat/1.jpg\ncat/a b.jpg\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"not a list in UTF-8 text .*NUL characters.* save it as UTF-8"):
        open_source(images / "l.txt")


def test_quotes_and_backslashes_are_understood(images: Path) -> None:
    (images / "q.txt").write_text("\"cat/1.jpg\" 3\n'cat/a b.jpg' 3\ndog/é.jpg 4\n")
    assert _read(images / "q.txt") == (ALL, ("3", "4"))
    (images / "w.csv").write_text("cat\\1.jpg,cat\ncat\\a b.jpg,cat\ndog\\é.jpg,dog\n")
    assert _read(images / "w.csv") == (ALL, ("cat", "dog"))


@pytest.mark.parametrize(
    ("head", "row", "classes"),
    [
        ("file_name,width,label", "{path},48,{label}", ("cat", "dog")),
        ("label,file_name", "{label},{path}", ("cat", "dog")),
        ("id,Image Path,CLASS", "7,{path},{label}", ("cat", "dog")),
        ("path,category,split", "{path},{label},train", ("cat", "dog")),
        ("filename,target,label_name", "{path},0,{label}", ("0",)),
        ("path,breed", "{path},{label}", ("cat", "dog")),
        ("path;x;label", "{path};1;{label}", ("cat", "dog")),
        ("path\tx\tlabel", "{path}\t1\t{label}", ("cat", "dog")),
    ],
)
def test_the_header_names_the_columns(images: Path, head: str, row: str, classes: tuple[str, ...]) -> None:
    paths = ("cat/1.jpg", "cat/a b.jpg", "dog/é.jpg")
    rows = [row.format(path=path, label=path.split("/")[0]) for path in paths]
    (images / "l.csv").write_text("\n".join([head, *rows]), encoding="utf-8")
    assert _read(images / "l.csv") == (ALL, classes)


@pytest.mark.parametrize(
    "text",
    [
        "image,MEL,NV\ncat/1.jpg,1,0\ndog/é.jpg,0,1\n",
        "image,width,height\ncat/1.jpg,48,40\ndog/é.jpg,48,41\n",
        "path,label_a,label_b,Label,label\ncat/1.jpg,1,0,a,b\ndog/é.jpg,0,1,c,d\n",
        "cat/1.jpg,48,cat\ndog/é.jpg,48,dog\n",
    ],
)
def test_where_no_column_is_sure_there_are_no_labels_and_the_flag_is_named(images: Path, text: str) -> None:
    (images / "l.csv").write_text(text, encoding="utf-8")
    source = open_source(images / "l.csv")
    assert (len(source), source.labels) == (2, None)
    assert "--label-column" in describe_source(source)


def test_the_user_names_columns_by_header_or_number(images: Path) -> None:
    (images / "l.csv").write_text("mask,photo,MEL,kind\ndog/é.jpg,cat/1.jpg,1,a\ncat/1.jpg,cat/a b.jpg,0,b\n", "utf-8")
    place = str(images / "l.csv")
    with pytest.raises(ValueError, match=r"several columns may hold the paths \(mask, photo, .* --path-column"):
        open_source(place)
    for label, path in (("kind", "photo"), ("4", "2"), ("KIND", "Photo")):
        assert _read(with_columns(place, label_column=label, path_column=path)) == (ALL[:2], ("a", "b"))
    with pytest.raises(ValueError, match=r"^label_column=sort: not a column of .*; its columns are mask, photo, MEL"):
        open_source(with_columns(place, label_column="sort", path_column="photo"))
    assert "labels: column kind" in describe_source(open_source(f"{place}#label=kind&path=photo"))


def test_columns_are_refused_where_there_are_none(images: Path) -> None:
    (images / "l.txt").write_text("cat/1.jpg\n")
    for place in (images, images / "l.txt"):
        with pytest.raises(ValueError, match=r"label_column"):
            open_source(with_columns(str(place), label_column="x"))


def test_the_first_row_of_a_list_without_suffixes_is_no_header(images: Path) -> None:
    for name in ("scan1", "scan2"):
        (images / name).write_bytes(name.encode())
    (images / "l.csv").write_text("scan1,a\nscan2,b\n")
    assert _read(images / "l.csv") == ([b"scan1", b"scan2"], ("a", "b"))


def test_names_without_the_suffix_of_their_files_get_a_hint(images: Path) -> None:
    (images / "l.csv").write_text("image,label\ncat/1,cat\n")
    with pytest.raises(ValueError, match=r"none of the first 1 paths exists .*cat/1\.jpg does: write names with their"):
        open_source(images / "l.csv")


def test_lines_that_repeat_a_path_are_told(images: Path) -> None:
    (images / "l.txt").write_text("cat/1.jpg\ncat/1.jpg\n")
    assert describe_source(open_source(images / "l.txt")) == "2 images without labels (paths repeated: 1)"


@pytest.mark.parametrize("name", ["l.txt", "l.csv", "d.zip", "d.tar", "t-images-idx3-ubyte", "1.jpg"])
def test_a_git_lfs_pointer_is_named_as_such(tmp_path: Path, name: str) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    (tmp_path / name).write_bytes(pointer)
    if name == "1.jpg":
        with pytest.raises(OSError, match="a git-lfs pointer, not the file itself; run `git lfs pull`"):
            open_source(tmp_path).read(0)
    else:
        with pytest.raises(ValueError, match="a git-lfs pointer, not the file itself; run `git lfs pull`"):
            open_source(tmp_path / name)


def test_a_column_that_names_the_parts_of_a_split_is_told(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").touch()
    rows = [f"{i}.jpg,{i % 2},{'test' if i > 7 else 'train'}" for i in range(10)]
    (tmp_path / "l.csv").write_text("\n".join(["image,label,Split", *rows]))
    told = describe_source(open_source(tmp_path / "l.csv"))
    assert "the column Split (test 2, train 8) is not used: all rows are" in told
