"""Rows of evaluation results, each with the id of its protocol; kept as one JSON file and one Markdown table."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mocokit.engine.checkpoint import write_text_atomically
from mocokit.report.text_tables import markdown_columns, text_columns

COLUMNS = ("raw pixels", "random init", "pre-trained")
"""Kinds of features, in the order of the table's columns."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One accuracy: a protocol, a kind of features and a seed."""

    protocol: str
    """Id of the result: the protocol, and the batch size and epochs it ran with."""
    features: str
    """One of COLUMNS."""
    accuracy: float
    """On the test images, 0..1."""
    seed: int
    minutes: float
    """Duration, including the time to compute the features, even if they came from the cache."""
    train_images: int
    """Number of labelled images trained on."""
    test_images: int
    chosen: str = ""
    """Settings that a held-out part of the training images chose; empty: nothing to choose."""
    data: str
    """Location of the training images."""
    test: str
    """Location of the test images; empty: a held-out tenth of `data`."""
    weights: str
    """First 12 hex digits of the hash of the run's weights."""

    @property
    def key(self) -> tuple[object, ...]:
        """Identity of the row: a newer row with the same key replaces it."""
        return self.protocol, self.features, self.seed, self.data, self.test


def load_rows(path: Path) -> list[Row]:
    """Return the rows of an `evaluation.json`; an empty list if the file does not exist.

    Raises:
        ValueError: The file was not written by `save_rows`.

    """
    if not path.is_file():
        return []
    try:
        return [Row(**values) for values in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a list of results ({error}); move it away") from error


def merge_rows(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return `new` after the rows of `old` that it does not replace; rows of other weights are dropped."""
    keys = {row.key for row in new}
    weights = {row.weights for row in new}
    return [row for row in old if row.key not in keys and row.weights in weights] + list(new)


def save_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Write `evaluation.json` and `evaluation.md` into `folder`."""
    write_text_atomically(folder / "evaluation.json", json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    write_text_atomically(folder / "evaluation.md", markdown_table(rows))


def table_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the header and one line per protocol: accuracies in percent, over seeds as mean +- sample deviation."""
    present = [name for name in COLUMNS if any(row.features == name for row in rows)]
    lines = []
    for protocol in dict.fromkeys(row.protocol for row in rows):
        own = [row for row in rows if row.protocol == protocol]
        cells = [show_percent([row.accuracy for row in own if row.features == name]) for name in present]
        minutes = statistics.mean(row.minutes for row in own if row.features == own[-1].features)
        lines.append([protocol, f"{own[0].train_images:,}", *cells, show_minutes(minutes)])
    return ["protocol", "labels", *present, "time"], lines


def show_percent(accuracies: Sequence[float]) -> str:
    """Return accuracies (0..1) as `81.2`, or `81.2 +- 0.3` for several; a dash for none."""
    if not accuracies:
        return "-"
    mean = f"{100 * statistics.mean(accuracies):.1f}"
    return mean if len(accuracies) == 1 else f"{mean} +- {100 * statistics.stdev(accuracies):.1f}"


def show_minutes(minutes: float) -> str:
    """Return a duration as `12 s`, `3.5 min` or `2.1 h`."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.1f} min" if minutes < 60 else f"{minutes / 60:.1f} h"


def text_table(rows: Sequence[Row]) -> str:
    """Return the table for a terminal: names aligned left, numbers right."""
    return text_columns(*table_cells(rows))


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the table in Markdown, below a line that tells the images, the weights and the seeds."""
    first = rows[0]
    seeds = sorted({row.seed for row in rows})
    tested = first.test or "a held-out tenth of them"
    return (
        f"Accuracy (%) on {first.test_images:,} test images. Data: `{first.data}`, test: {tested}, weights "
        f"{first.weights}, seeds {', '.join(map(str, seeds))}.\n\n{markdown_columns(*table_cells(rows))}"
    )
