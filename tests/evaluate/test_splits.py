import shutil
from collections import Counter
from pathlib import Path

import pytest

from mocokit.data.sources.open_source import open_source
from mocokit.data.views import ImageReader
from mocokit.evaluate.features import EvaluationView, LabelledImages, choose_images
from mocokit.evaluate.splits import fraction_of, hold_out, open_train_and_test, read_id_list

VIEW = EvaluationView(size_px=16, crop_ratio=1.0, num_workers=0)


@pytest.fixture
def images(photos: Path) -> LabelledImages:
    """80 images, 16 in each of 5 classes."""
    return choose_images(ImageReader(open_source(photos), max_image_px=10**6, seed=0), VIEW)


def _counts(images: LabelledImages) -> list[int]:
    return sorted(Counter(images.labels[index] for index in images.indices).values())


def _sized(images: LabelledImages, sizes: list[int]) -> LabelledImages:
    """Return a subset that has sizes[c] images of class c."""
    kept = [index for index in images.indices if index % 16 < sizes[images.labels[index]]]
    assert _counts(images.only(kept)) == sorted(size for size in sizes if size)
    return images.only(kept)


@pytest.mark.parametrize(
    ("fraction", "want"),
    [
        (0.01, [1] * 5),
        (0.1, [1, 1, 2, 2, 2]),
        (0.25, [4] * 5),
        (0.5, [8] * 5),
        (0.99, [15, 16, 16, 16, 16]),
        (1, [16] * 5),
    ],
)
def test_a_fraction_has_its_size_and_is_balanced(images: LabelledImages, fraction: float, want: list[int]) -> None:
    part = fraction_of(images, fraction, seed=0)
    assert _counts(part) == want
    assert len(set(part.indices)) == len(part.indices) and set(part.indices) <= set(images.indices)


@pytest.mark.parametrize(
    ("sizes", "fraction", "want"),
    [
        ([1, 2, 16, 16, 16], 0.5, [1, 2, 7, 8, 8]),
        ([3, 3, 3, 3, 16], 0.9, [3, 3, 3, 3, 13]),
        ([1, 1, 1, 1, 16], 0.01, [1] * 5),
    ],
)
def test_small_classes_give_all_their_images_and_the_others_share_the_rest(
    images: LabelledImages, sizes: list[int], fraction: float, want: list[int]
) -> None:
    uneven = _sized(images, sizes)
    assert _counts(fraction_of(uneven, fraction, seed=3)) == want
    assert sum(want) == max(5, round(fraction * sum(sizes)))


def test_the_seed_draws_the_images(images: LabelledImages) -> None:
    drawn = [fraction_of(images, 0.25, seed=seed).indices for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    often = Counter(index for seed in range(200) for index in fraction_of(images, 0.25, seed=seed).indices)
    assert len(often) == 80, "each image is drawn by some seed"
    assert max(often.values()) < 50 + 4 * 6.2, "200 draws of probability 1/4: 50 +- 6.1"


def test_the_held_out_part_is_disjoint_balanced_and_complete(images: LabelledImages) -> None:
    rest, held = hold_out(images, 0.2, seed=0)
    assert _counts(held) == [3] * 5
    assert sorted(rest.indices + held.indices) == sorted(images.indices)


def test_nothing_can_be_held_out_of_one_image_a_class(images: LabelledImages) -> None:
    one_each = fraction_of(images, 0.01, seed=0)
    with pytest.raises(ValueError, match="fraction: one labelled image per class"):
        hold_out(one_each, 0.2, seed=0)
    two_of_one = images.only([*one_each.indices, next(i for i in images.indices if i not in one_each.indices)])
    rest, held = hold_out(two_of_one, 0.2, seed=0)
    assert len(held.indices) == 1 and _counts(rest) == [1] * 5


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01])
def test_an_impossible_fraction_is_an_error(images: LabelledImages, fraction: float) -> None:
    with pytest.raises(ValueError, match=f"fraction={fraction}: must be above 0"):
        fraction_of(images, fraction, seed=0)


def test_without_test_images_a_tenth_is_held_out(photos: Path) -> None:
    train, test = open_train_and_test(photos, None, VIEW, seed=0)
    assert len(test.indices) == 8 and not set(train.indices) & set(test.indices) and len(train.indices) == 72
    assert open_train_and_test(photos, None, VIEW, seed=1)[1].indices != test.indices


def test_an_id_list_names_images_by_file_by_path_or_by_number(photos: Path, tmp_path: Path) -> None:
    source = open_source(photos)
    ids = tmp_path / "ids.txt"
    names = [source.name(index) for index in (3, 20)]
    for lines in (["3", "20"], names, ["/".join(Path(name).parts[-2:]) for name in names]):
        ids.write_text("\n".join([*lines, ""]))
        assert read_id_list(ids, source) == [3, 20]


@pytest.mark.parametrize(("line", "message"), [("no.jpg", "no image of the data has that name"), ("80", "no image")])
def test_a_line_that_names_no_image_is_an_error(photos: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "ids.txt").write_text(line)
    with pytest.raises(ValueError, match=f"ids=.*: {line}: {message}"):
        read_id_list(tmp_path / "ids.txt", open_source(photos))


def test_a_name_that_two_images_have_is_an_error(photos: Path, tmp_path: Path) -> None:
    twins = {Path(open_source(photos).name(index)).name for index in range(16)} & {
        Path(open_source(photos).name(index)).name for index in range(16, 32)
    }
    (tmp_path / "ids.txt").write_text(min(twins))
    with pytest.raises(ValueError, match="several images have that name"):
        read_id_list(tmp_path / "ids.txt", open_source(photos))


def _say(lines: list[str], data: Path, test: Path | None = None) -> tuple[LabelledImages, LabelledImages]:
    return open_train_and_test(data, test, VIEW, seed=0, on_data=lines.append)


def test_a_test_folder_of_one_class_has_that_class(photos: Path, tmp_path: Path) -> None:
    for place in ("test/grass", "deep/test/v1/grass/part1"):
        shutil.copytree(photos / "grass", tmp_path / place)
    for folder in ("test", "deep"):
        lines = list[str]()
        _, test = _say(lines, photos, tmp_path / folder)
        assert {test.class_names[test.labels[index]] for index in test.indices} == {"grass"}
        assert lines[1] == f"test: 16 images in 1 class (grass 16); from {tmp_path / folder}"


def test_a_test_folder_of_one_unknown_class_is_blamed_by_its_path(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "grass", tmp_path / "test" / "lawn")
    with pytest.raises(ValueError, match=rf"^test={tmp_path}/test: no labels \(all in the folder lawn\); give class"):
        _say([], photos, tmp_path / "test")
    shutil.copytree(photos / "cat", tmp_path / "test" / "cat")
    with pytest.raises(ValueError, match=rf"^test={tmp_path}/test: classes \['lawn'\] are not among those of the"):
        _say([], photos, tmp_path / "test")


def test_training_images_without_labels_say_why(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "grass", tmp_path / "grass")
    with pytest.raises(ValueError, match=r"^data=.*: no labels \(all in the folder grass\)"):
        _say([], tmp_path)
    for number in range(4):
        shutil.copy(photos / "cat" / next((photos / "cat").iterdir()).name, tmp_path / f"loose{number}.jpg")
    with pytest.raises(ValueError, match=r"no labels \(since 4 lie beside the folders grass: loose0.jpg"):
        _say([], tmp_path)


def test_a_stray_image_does_not_cost_the_labels(own_photos: Path) -> None:
    shutil.copy(next((own_photos / "cat").iterdir()), own_photos / "grid.jpg")
    lines = list[str]()
    train, _ = _say(lines, own_photos)
    assert len(train.labels) == 80
    assert "left out: 1 image beside the folders (grid.jpg: they belong to none of them" in lines[0]


def test_the_test_part_of_a_split_is_tested_on_unless_another_is_named(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "d" / "train")
    for name in ("cat", "grass"):
        shutil.copytree(photos / name, tmp_path / "d" / "val" / name)
    lines = list[str]()
    train, test = _say(lines, tmp_path / "d")
    assert (len(train.indices), len(test.indices)) == (80, 32)
    assert test.location == str(tmp_path / "d" / "val")
    assert lines[0].startswith(
        "data: 80 images in 5 classes (brick 16, cat 16, coffee 16, grass 16, rocket 16) (train/, "
    )
    assert _say([], tmp_path / "d", tmp_path / "d" / "train")[1].location == str(tmp_path / "d" / "train")


def test_an_error_of_the_test_images_blames_their_flag(photos: Path, tmp_path: Path) -> None:
    """Before: `data=...: no such file or folder` for a wrong --test."""
    view = EvaluationView(size_px=32, crop_ratio=1.0, num_workers=0)
    with pytest.raises(ValueError, match=rf"^test={tmp_path / 'nowhere'}: no such file or folder"):
        open_train_and_test(photos, tmp_path / "nowhere", view, seed=0)
