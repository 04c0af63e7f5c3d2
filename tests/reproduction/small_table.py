"""A table of two cells that trains in seconds; `python -m tests.reproduction.small_table PHOTOS OUT` trains it."""

import sys
from pathlib import Path

from mocokit.reproduction.rendering import FilledTable
from mocokit.reproduction.runner import TablePlan, run_table
from mocokit.reproduction.table import Cell, Expected, Table
from tests.small_presets import add_narrow_backbone

SMALL: dict[str, object] = {
    "data.image_size": 32,
    "data.global_batch_size": 16,
    "data.workers": 0,
    "model.arch": "resnet10_w8",
    "model.dim": 16,
    "method.queue_size": 40,
    "optim.lr": 0.05,
    "run.precision": "fp32",
    "run.log_every": 1,
    "run.save_minutes": 0.002,
}


def small_table(*, second_lr: float = 0.05) -> Table:
    """Return a table of two temperatures; only the first has a published number."""
    expected = {"linear": Expected(value=60.0, source="nowhere")}
    return Table(
        name="tiny",
        title="Two temperatures",
        source="a test",
        metrics=("linear",),
        small_epochs=8,
        x_label="T",
        cells=(
            Cell(
                name="T=0.1",
                preset="moco-v2",
                settings={"method.temperature": 0.1},
                small=SMALL,
                x=0.1,
                expected=expected,
            ),
            Cell(
                name="T=0.2",
                preset="moco-v2",
                settings={"method.temperature": 0.2},
                small=SMALL | {"optim.lr": second_lr},
                x=0.2,
            ),
        ),
    )


def small_plan(photos: Path, out: Path, *, table: Table | None = None, seeds: int = 1) -> TablePlan:
    """Return a plan that trains and evaluates on the same images."""
    table = table or small_table()
    return TablePlan(
        table=table, cells=table.cells, out=out, data=str(photos), test=str(photos), seeds=seeds, device="cpu"
    )


def filled(values: dict[str, dict[str, list[float]]]) -> FilledTable:
    """Return the table with these measured values."""
    table = small_table()
    return FilledTable(
        table=table, cells=table.cells, metrics=("linear", "kNN"), values=values, setup="some photographs"
    )


if __name__ == "__main__":
    add_narrow_backbone()
    for _ in run_table(small_plan(Path(sys.argv[1]), Path(sys.argv[2]))):
        pass
