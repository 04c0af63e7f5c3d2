"""The numbers of each seed of a cell, read from its run folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mocokit.engine.checkpoint import write_text_atomically
from mocokit.evaluate.results import Row, load_rows

KNN_PROTOCOL = "knn/k=20/T=0.07"

MINUTES = "minutes"
"""Metric that only runs at small scale have: duration of pre-training and evaluation."""

Values = Mapping[str, Mapping[str, list[float]]]
"""Cell -> metric -> percent, one number a seed (detection: one number a trial)."""


def cell_folder(out: Path, table: str, cell: str, seed: int) -> Path:
    """Return the run folder of one seed of a cell."""
    return out / table / cell / f"seed_{seed}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """Numbers of one seed of a cell at small scale."""

    metrics: dict[str, float]
    """Percent."""
    protocols: dict[str, str]
    """Metric -> id of its protocol."""
    minutes: float
    """Pre-training and evaluation, counted by the process that finished the run; earlier processes are not included."""
    machine: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write `result.json` atomically."""
        write_text_atomically(folder / "result.json", json.dumps(asdict(self), indent=1) + "\n")


def load_result(folder: Path) -> Result | None:
    """Return the result in `folder`, or None if there is none."""
    path = folder / "result.json"
    return Result(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def metrics_of(rows: list[Row]) -> tuple[dict[str, float], dict[str, str]]:
    """Return ({"linear": percent, "kNN": percent}, {metric: protocol}) of a pre-trained backbone.

    The official protocol (`linear/moco`) is preferred to other linear protocols; among those the last row counts.
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
    """Return the numbers found in the run folders of each cell.

    Reads `result.json` (small scale) or else `evaluation.json` (`mocokit linear`), and `detection/trial_*.json`
    (`mocokit detect`).
    """
    values: dict[str, dict[str, list[float]]] = {}
    for cell, runs in folders.items():
        by_metric = values.setdefault(cell, {})
        for run in runs:
            result = load_result(run)
            metrics = result.metrics if result else metrics_of(load_rows(run / "evaluation.json"))[0]
            numbers = [*metrics.items()]
            if result:
                numbers.append((MINUTES, result.minutes))
            for trial in sorted((run / "detection").glob("trial_*.json")):
                numbers += json.loads(trial.read_text(encoding="utf-8"))["metrics"].items()
            for name, value in numbers:
                by_metric.setdefault(name, []).append(value)
    return values
