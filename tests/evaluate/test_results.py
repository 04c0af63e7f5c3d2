import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mocokit.evaluate.results import Row, load_rows, markdown_table, merge_rows, save_rows, show_minutes, text_table

ROW = Row(
    protocol="linear/moco@b256,e100",
    features="pre-trained",
    accuracy=0.812,
    seed=0,
    minutes=0.5,
    train_images=1000,
    test_images=100,
    data="/d",
    test="/t",
    weights="abc",
)


def test_saved_rows_load_unchanged(tmp_path: Path) -> None:
    save_rows(tmp_path, [ROW, replace(ROW, seed=1, chosen="lr 3")])
    assert load_rows(tmp_path / "evaluation.json") == [ROW, replace(ROW, seed=1, chosen="lr 3")]
    assert load_rows(tmp_path / "none.json") == []


def test_a_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('[{"a": 1}]')
    with pytest.raises(ValueError, match=r"evaluation.json: not a list of results"):
        load_rows(tmp_path / "evaluation.json")


def test_new_rows_replace_old_ones_and_rows_of_other_weights_are_dropped() -> None:
    old = [ROW, replace(ROW, protocol="knn/k=20/T=0.07"), replace(ROW, seed=3, weights="old")]
    new = [replace(ROW, accuracy=0.9)]
    assert merge_rows(old, new) == [old[1], new[0]]


def test_several_seeds_are_shown_as_mean_and_sample_deviation() -> None:
    rows = [replace(ROW, accuracy=accuracy, seed=seed) for seed, accuracy in enumerate((0.80, 0.82, 0.87))]
    raw = replace(ROW, features="raw pixels", accuracy=0.5, protocol="knn/k=20/T=0.07")
    lines = [line.split("   ") for line in text_table([raw, *rows]).splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["protocol", "labels", "raw pixels", "pre-trained", "time"]
    assert cells[2] == ["knn/k=20/T=0.07", "1,000", "50.0", "-", "30 s"]
    assert cells[3] == ["linear/moco@b256,e100", "1,000", "-", "83.0 +- 3.6", "30 s"]  # sqrt((9 + 1 + 16) / 2) = 3.6


def test_the_markdown_table_names_the_data_and_the_weights() -> None:
    table = markdown_table([ROW])
    assert "100 test images. Data: `/d`, test: /t, weights abc, seeds 0." in table
    assert "| linear/moco@b256,e100 | 1,000 | 81.2 | 30 s |" in table
    assert "test: a held-out tenth of them" in markdown_table([replace(ROW, test="")])


@pytest.mark.parametrize(("minutes", "text"), [(0.2, "12 s"), (3.51, "3.5 min"), (126, "2.1 h")])
def test_durations_are_short(minutes: float, text: str) -> None:
    assert show_minutes(minutes) == text


def test_each_data_set_has_a_table_of_its_own_and_older_rows_stay_apart(tmp_path: Path) -> None:
    older = [replace(ROW, accuracy=accuracy, seed=seed) for seed, accuracy in enumerate((0.5, 0.6))]
    known = [replace(row, data_id="a" * 64, test_id="b" * 64, accuracy=0.9) for row in older]
    other = replace(known[0], data_id="c" * 64, accuracy=0.1)
    moved = replace(known[0], data="/elsewhere", accuracy=0.8)
    rows = merge_rows(merge_rows(older, [*known, other]), [moved])
    assert rows == [*older, known[1], other, moved], "a moved data set replaces its own row"
    table = markdown_table(rows)
    assert [line.split("|")[3].strip() for line in table.splitlines() if "linear/moco" in line] == [
        "55.0 +- 7.1",
        "85.0 +- 7.1",
        "10.0",
    ]
    assert "Data: `/elsewhere` (aaaaaaaaaaaa), test: /t (bbbbbbbbbbbb), weights abc, seeds 0, 1." in table
    assert "Data: `/d`, test: /t, weights abc, seeds 0, 1." in table


def test_rows_of_an_older_version_load(tmp_path: Path) -> None:
    new = {"data_id", "test_id", "unreadable"}
    old = {name: value for name, value in asdict(ROW).items() if name not in new}
    (tmp_path / "evaluation.json").write_text(json.dumps([old]))
    assert load_rows(tmp_path / "evaluation.json") == [ROW]
