from typing import Any

import pytest

from mocokit.cli import main
from mocokit.config.presets import PRESETS
from mocokit.config.toml import to_dict
from mocokit.reproduction.small_scale import shrink
from mocokit.reproduction.table import Cell, Table
from mocokit.reproduction.tables import SMALL_K, TABLES

ALL = [(table, cell) for table in TABLES.values() for cell in table.cells]


def _default(section: object, name: str) -> object:
    return section.__dataclass_fields__[name].default  # type: ignore[attr-defined]


def _differences(cell: Cell, preset: str) -> dict[str, object]:
    """Return the settings in which the cell's run differs from a preset."""
    base = to_dict(PRESETS[preset])
    own = to_dict(cell.config)
    return {
        f"{section}.{name}": value
        for section, values in own.items()
        for name, value in values.items()
        if value != base[section].get(name, _default(getattr(cell.config, section), name))
    }


def test_temperature_cells_change_only_the_head_and_the_temperature_of_v1() -> None:
    for cell, temperature in zip(TABLES["temperature"].cells, (0.07, 0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        differences = _differences(cell, "moco-v1")
        assert differences.pop("method.temperature", 0.07) == temperature
        assert differences == {"model.mlp": True}


def test_each_row_of_the_ablation_differs_from_v1_as_its_name_says() -> None:
    switches: dict[str, dict[str, object]] = {
        "v1": {},
        "MLP": {"model.mlp": True, "method.temperature": 0.2},
        "aug+": {"augment.aug_plus": True},
        "cos": {"optim.schedule": "cosine"},
        "800ep": {"optim.epochs": 800},
    }
    for cell in TABLES["ablation"].cells:
        want = {name: value for part in cell.name.split(",") for name, value in switches[part].items()}
        assert _differences(cell, "moco-v1") == want, cell.name


def test_simclr_differs_from_its_preset_by_batch_epochs_and_the_resulting_rate() -> None:
    found = {cell.name: _differences(cell, "simclr") for cell in TABLES["sota"].cells if cell.preset == "simclr"}
    assert found == {
        "SimCLR,200ep,b256": {"data.global_batch_size": 256, "optim.epochs": 200, "optim.lr": 0.3},
        "SimCLR,200ep,b8192": {"data.global_batch_size": 8192, "optim.epochs": 200, "optim.lr": pytest.approx(9.6)},
        "SimCLR,1000ep,b4096": {"optim.epochs": 1000},
    }


def test_mechanisms_differ_from_v1_only_by_the_source_of_negatives() -> None:
    for cell in TABLES["mechanisms"].cells:
        differences = _differences(cell, "moco-v1")
        method: Any = cell.config.method
        differences.pop("method.name", None)
        if method.name == "end-to-end":
            assert cell.config.data.global_batch_size == cell.x
            assert cell.config.optim.lr == pytest.approx(0.03 * cell.config.data.global_batch_size / 256)
            for follows in ("optim.lr", "data.global_batch_size"):
                differences.pop(follows, None)
        else:
            assert cell.x == (method.queue_size if method.name == "moco" else method.num_negatives)
            for number in ("method.queue_size", "method.num_negatives"):
                differences.pop(number, None)
        assert differences == {}, cell.name


@pytest.mark.parametrize(("table", "cell"), ALL, ids=lambda value: value.name)
def test_small_scale_changes_only_sizes_lengths_and_rates(table: Table, cell: Cell) -> None:
    paper = cell.config
    small = shrink(table, cell)
    for section, name in (
        ("method", "name"),
        ("method", "temperature"),
        ("model", "mlp"),
        ("augment", "aug_plus"),
        ("augment", "recipe"),
        ("optim", "schedule"),
        ("optim", "name"),
        ("model", "head_layers"),
    ):
        assert getattr(getattr(small, section), name) == getattr(getattr(paper, section), name), name
    assert small.optim.epochs == round(paper.optim.epochs * table.small_epochs / 200)


def test_small_mechanisms_have_as_many_negatives_as_their_position_on_the_axis() -> None:
    for cell in TABLES["mechanisms"].cells:
        small = shrink(TABLES["mechanisms"], cell)
        numbers = {
            "moco": getattr(small.method, "queue_size", 0),
            "memory-bank": getattr(small.method, "num_negatives", 0),
            "end-to-end": small.data.global_batch_size,
        }
        assert numbers[small.method.name] == cell.small_x == SMALL_K[int(cell.x or 0)]


def test_an_unknown_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, nearest in (("temperatur", "temperature"), ("cots", "cost")):
        assert main(["reproduce", wrong]) == 1
        assert f"table='{wrong}': unknown; did you mean {nearest}? choose one of" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"only='T=0\.6': unknown; did you mean T=0"):
        TABLES["temperature"].choose_cells(["T=0.6"])


def test_cells_are_chosen_in_the_order_of_the_table() -> None:
    table = TABLES["temperature"]
    assert [cell.name for cell in table.choose_cells(["T=0.2", "T=0.07"])] == ["T=0.07", "T=0.2"]
    assert table.choose_cells([]) == table.cells


def test_every_published_number_has_a_source() -> None:
    for _, cell in ALL:
        for number in cell.expected.values():
            assert any(word in number.source for word in ("README", "recall", "secondary page"))
