"""The numbers of a cell, per seed: written when the cell is done, or read from what the commands left in its folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mocokit.engine.checkpoint import write_text_atomically
from mocokit.evaluate.results import Row, load_rows

KNN_PROTOCOL = "knn/k=20/T=0.07"

MINUTES = "minutes"
"""The metric that a run at small scale has beside its accuracies: how long it took."""

Values = Mapping[str, Mapping[str, list[float]]]
"""Cell -> metric -> percent, one number a seed (of detection: a trial)."""


def cell_folder(out: Path, table: str, cell: str, seed: int) -> Path:
    """The run folder of one seed of a cell."""
    return out / table / cell / f"seed_{seed}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one seed of a cell gave."""

    metrics: dict[str, float]
    """Percent."""
    protocols: dict[str, str]
    """Of each metric, the id of its protocol."""
    minutes: float
    """Pre-training and evaluation, of the process that ended it."""
    machine: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write `result.json`, whole or not at all."""
        write_text_atomically(folder / "result.json", json.dumps(asdict(self), indent=1) + "\n")


def load_result(folder: Path) -> Result | None:
    """The result that `save` wrote; None when there is none."""
    path = folder / "result.json"
    return Result(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def metrics_of(rows: list[Row]) -> tuple[dict[str, float], dict[str, str]]:
    """({"linear": percent, "kNN": percent}, their protocols) of a pre-trained backbone's evaluation.

    Of several linear protocols the official one (`linear/moco`) counts.
    """
    found: dict[str, Row] = {}
    for row in rows:
        if row.features != "pre-trained" or "best-on-test" in row.protocol:
            continue
        if row.protocol.startswith(KNN_PROTOCOL):
            found["kNN"] = row
        elif row.protocol.startswith("linear/moco@") or (
            row.protocol.startswith("linear/") and not found.get("linear", row).protocol.startswith("linear/moco@")
        ):
            found["linear"] = row
    return (
        {name: 100 * row.accuracy for name, row in found.items()},
        {name: row.protocol for name, row in found.items()},
    )


def find_values(folders: Mapping[str, list[Path]]) -> dict[str, dict[str, list[float]]]:
    """What is finished in the run folders of each cell, whoever made it.

    Read are `result.json`, `evaluation.json` (`mocokit linear`) and `detection/trial_*.json` (`mocokit detect`).
    """
    values: dict[str, dict[str, list[float]]] = {}
    for cell, runs in folders.items():
        of_cell = values.setdefault(cell, {})
        for run in runs:
            result = load_result(run)
            metrics = result.metrics if result else metrics_of(load_rows(run / "evaluation.json"))[0]
            for name, value in metrics.items():
                of_cell.setdefault(name, []).append(value)
            if result:
                of_cell.setdefault(MINUTES, []).append(result.minutes)
            for trial in sorted((run / "detection").glob("trial_*.json")):
                for name, value in json.loads(trial.read_text(encoding="utf-8"))["metrics"].items():
                    of_cell.setdefault(name, []).append(value)
    return values
