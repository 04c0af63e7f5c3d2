"""Labels from folders: classes, the parts of a split, and images beside them."""

import zipfile
from pathlib import Path

import pytest

from mocokit.data.sources.layout import labels_among, read_layout
from mocokit.data.sources.left_out import LeftOutTally, describe_source
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.sources import FileSource


def _write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def _classes(root: str, names: str = "cat dog", count: int = 5) -> list[str]:
    return [f"{root}{name}/{i}.jpg" for name in names.split() for i in range(count)]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"),
        ("Train", "Test"),
        ("training", "validation"),
        ("TRAIN", "valid"),
        ("train", "testing"),
        ("train2017", "val2017"),
        ("train_set", "test_set"),
        ("DIV2K_train_HR", "DIV2K_valid_HR"),
        ("train-images", "dev-images"),
    ],
)
@pytest.mark.parametrize("above", ["", "birds/v2/"])
def test_parts_of_a_split_are_no_classes(tmp_path: Path, train: str, test: str, above: str) -> None:
    _write(tmp_path, *_classes(f"{above}{train}/"), *_classes(f"{above}{test}/", count=2))
    source = open_source(tmp_path)
    assert isinstance(source, FileSource)
    assert source.class_names == ("cat", "dog")
    assert len(source) == 10
    assert all(name.startswith(f"{above}{train}/") for name in source.names)
    assert source.test_part == str(tmp_path / f"{above}{test}")
    line = describe_source(source)
    assert f"({above}{train}/, the training part of the split); left out: 4 images in {above}{test}/ (" in line


def test_of_three_parts_validation_is_tested_on_and_the_other_is_named(tmp_path: Path) -> None:
    source = open_source(
        _write(tmp_path, *(name for part in ("train", "val", "test") for name in _classes(f"{part}/")))
    )
    assert source.test_part == str(tmp_path / "val")  # type: ignore[attr-defined]
    assert "10 images in test/ (another part of the split; name it" in describe_source(source)


def test_a_test_part_without_classes_is_not_tested_on(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path, *_classes("train/"), "test/1.jpg", "test/2.jpg", *_classes("val/")))
    assert source.test_part == str(tmp_path / "val")  # type: ignore[attr-defined]
    source = open_source(_write(tmp_path / "b", *_classes("train/"), "test/1.jpg", "test/2.jpg"))
    assert source.test_part == ""  # type: ignore[attr-defined]


def test_parts_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path, "train/1.jpg", "train/2.jpg", "test/3.jpg"))
    assert (len(source), source.labels) == (2, None)


def test_a_split_without_a_training_part_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"its folders test, val are parts of a split, none of them for training; name"
    ):
        open_source(_write(tmp_path, *_classes("val/"), *_classes("test/")))


def test_a_class_named_train_among_others_stays_a_class(tmp_path: Path) -> None:
    assert open_source(_write(tmp_path / "a", *_classes("", "bus car train"))).class_names == ("bus", "car", "train")
    names = ("test_tube", "train_station")
    assert open_source(_write(tmp_path / "b", *_classes("", " ".join(names)))).class_names == names
    assert open_source(_write(tmp_path / "c", *_classes("", "trains vale"))).class_names == ("trains", "vale")


def test_a_split_inside_an_archive_is_one_too_and_its_test_part_can_be_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name in (*_classes("d/train/"), *_classes("d/val/", count=1)):
            archive.writestr(name, name)
    source = open_source(tmp_path / "d.zip")
    assert (len(source), source.class_names) == (10, ("cat", "dog"))
    test = open_source(source.test_part)  # type: ignore[attr-defined]
    assert [test.read(index) for index in range(len(test))] == [b"d/val/cat/0.jpg", b"d/val/dog/0.jpg"]
    assert test.class_names == ("cat", "dog")


@pytest.mark.parametrize("strays", [1, 3])
def test_a_few_images_beside_class_folders_are_left_out_by_name(tmp_path: Path, strays: int) -> None:
    _write(tmp_path, *_classes("", count=20), *(f"grid{i}.jpg" for i in range(strays)))
    source = open_source(tmp_path)
    assert (len(source), source.class_names) == (40, ("cat", "dog"))
    assert "beside the folders (grid0.jpg" in describe_source(source)


def test_many_images_beside_folders_mean_no_labels_and_are_named(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path, *_classes(""), *(f"{i}.jpg" for i in range(5))))
    assert (len(source), source.labels) == (15, None)
    assert "since 5 lie beside the folders cat, dog: 0.jpg, 1.jpg, 2.jpg, ..." in describe_source(source)


def test_a_stray_image_far_above_the_classes_is_left_out_too(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path, *_classes("data/v1/", count=20), "logo.png"))
    assert source.class_names == ("cat", "dog")
    assert "1 image beside the folders (logo.png: " in describe_source(source)


def test_one_folder_is_no_class_but_says_so(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path, *_classes("", "cat")))
    assert describe_source(source) == "5 images without labels (all in the folder cat)"


def test_labels_among_known_classes_need_no_second_class() -> None:
    assert labels_among(["x/cat/1.jpg", "x/cat/deep/2.jpg"], ("bird", "cat")) == (1, 1)
    assert labels_among(["x/cow/1.jpg"], ("bird", "cat")) is None
    assert labels_among(["1.jpg", "cat/1.jpg"], ("cat",)) is None
    assert labels_among([], ("cat",)) is None


def test_names_and_their_order_stay_where_nothing_is_left_out() -> None:
    names = ["b/2.jpg", "a/1.jpg", "a/0.jpg"]
    layout = read_layout(names, LeftOutTally())
    assert (layout.names, layout.labels, layout.note) == (tuple(names), (1, 0, 0), "")


def test_folders_in_a_zip_file_of_windows_are_classes(tmp_path: Path) -> None:
    """Before: names with `\\`, which some programs write, had no folders and so no labels."""
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name in _classes("top/"):
            entry = zipfile.ZipInfo("x")
            entry.filename = name.replace("/", "\\")
            archive.writestr(entry, name)
    source = open_source(tmp_path / "d.zip")
    assert source.class_names == ("cat", "dog")
    assert [source.read(index) for index in (0, 9)] == [b"top/cat/0.jpg", b"top/dog/4.jpg"]


@pytest.mark.parametrize("parts", ["TrainingData TestData", "train_images val_images", "Train Holdout"])
def test_parts_of_a_split_may_have_longer_names(parts: str, tmp_path: Path) -> None:
    train, test = parts.split()
    source = open_source(_write(tmp_path, *_classes(f"{train}/"), *_classes(f"{test}/")))
    assert (len(source), source.class_names) == (10, ("cat", "dog"))
    assert source.test_part == str(tmp_path / test)  # type: ignore[attr-defined]


def test_parts_of_a_split_within_each_class_are_told(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path, *_classes("", "cat/train cat/test dog/train dog/test")))
    assert source.class_names == ("cat", "dog")
    assert "(all of the parts test, train in each class)" in describe_source(source)
