import json
from dataclasses import replace
from pathlib import Path

from mocokit.reproduction.rendering import markdown_text, mean_and_deviation, save_table, terminal_text
from tests.reproduction.small_table import filled


def test_mean_and_sample_deviation_in_closed_form() -> None:
    assert mean_and_deviation([]) == ""
    assert mean_and_deviation([61.25]) == "61.2"
    assert mean_and_deviation([60.0, 62.0, 64.0]) == "62.0 +- 2.0 (3)", "the divisor is n - 1"


def test_a_cell_that_was_not_run_is_empty_and_a_paper_number_has_its_source() -> None:
    text = markdown_text(filled({"T=0.1": {"linear": [70.0, 72.0]}}))
    assert "|  | paper: linear | linear | kNN |" in text
    assert "| T=0.1 | 60.0 [1] | 71.0 +- 1.4 (2) |  |" in text
    assert "| T=0.2 |  |  |  |" in text
    assert "\\[1\\] nowhere" in text
    terminal = terminal_text(filled({})).splitlines()
    assert [line for line in terminal if line.startswith("T=0.2")] == ["T=0.2"]


def test_the_position_of_a_small_cell_on_the_axis_is_a_column() -> None:
    table = filled({"T=0.1": {"linear": [70.0]}})
    cells = tuple(replace(cell, small_x=x) for cell, x in zip(table.cells, (0.3, None), strict=True))
    text = markdown_text(replace(table, cells=cells, small=True))
    assert "|  | paper: linear | T here | linear | kNN |" in text
    assert "| T=0.1 | 60.0 [1] | 0.3 | 70.0 |  |" in text
    assert "T here" not in markdown_text(replace(table, cells=cells))


def test_minutes_are_a_column_if_any_run_has_them() -> None:
    text = markdown_text(filled({"T=0.1": {"linear": [70.0], "minutes": [2.0, 4.0]}}))
    assert "|  | paper: linear | linear | kNN | minutes a run |" in text
    assert "| T=0.1 | 60.0 [1] | 70.0 |  | 3.0 |" in text


def test_the_json_holds_settings_numbers_machine_and_commit(tmp_path: Path) -> None:
    save_table(filled({"T=0.2": {"kNN": [50.0]}}), tmp_path)
    saved = json.loads((tmp_path / "table.json").read_text())
    assert saved["cells"]["T=0.2"] == {
        "preset": "moco-v2",
        "settings": {"method.temperature": 0.2},
        "expected": {},
        "got": {"kNN": [50.0]},
    }
    assert saved["cells"]["T=0.1"]["expected"] == {"linear": {"value": 60.0, "source": "nowhere"}}
    assert saved["machine"]["torch"]
    assert "commit" in saved["machine"]
