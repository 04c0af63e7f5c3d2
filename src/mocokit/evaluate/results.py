"""The numbers of an evaluation, each beside the id of its protocol: one JSON file and one table."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mocokit.engine.checkpoint import write_text_atomically
from mocokit.report.text_tables import markdown_columns, text_columns

COLUMNS = ("raw pixels", "random init", "pre-trained")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number."""

    protocol: str
    """Its id: how, with which batch and how many epochs."""
    features: str
    """pre-trained, random init or raw pixels"""
    accuracy: float
    """On the test images, 0..1."""
    seed: int
    minutes: float
    """All that it took, computing the features included, also when they came from the cache."""
    train_images: int
    test_images: int
    chosen: str = ""
    """What a held-out part of the training images chose."""
    data: str
    test: str
    """Empty: a tenth of `data`."""
    weights: str
    """First digits of the hash of the judged run's weights."""

    @property
    def key(self) -> tuple[object, ...]:
        """What a newer result of the same replaces."""
        return self.protocol, self.features, self.seed, self.data, self.test


def load_rows(path: Path) -> list[Row]:
    """The rows of an `evaluation.json`; none when there is no such file.

    Raises:
        ValueError: Not a file that `save_rows` wrote.

    """
    if not path.is_file():
        return []
    try:
        return [Row(**values) for values in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a list of results ({error}); move it away") from error


def merge_rows(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """`new` with those of `old` that it does not replace; results of other weights are dropped."""
    keys = {row.key for row in new}
    weights = {row.weights for row in new}
    return [row for row in old if row.key not in keys and row.weights in weights] + list(new)


def save_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Write `evaluation.json` and `evaluation.md`."""
    write_text_atomically(folder / "evaluation.json", json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    write_text_atomically(folder / "evaluation.md", markdown_table(rows))


def table_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: a protocol a line, accuracy in percent, mean and sample deviation where there are seeds."""
    present = [name for name in COLUMNS if any(row.features == name for row in rows)]
    lines = []
    for protocol in dict.fromkeys(row.protocol for row in rows):
        own = [row for row in rows if row.protocol == protocol]
        cells = [show_percent([row.accuracy for row in own if row.features == name]) for name in present]
        minutes = statistics.mean(row.minutes for row in own if row.features == own[-1].features)
        lines.append([protocol, f"{own[0].train_images:,}", *cells, show_minutes(minutes)])
    return ["protocol", "labels", *present, "time"], lines


def show_percent(accuracies: Sequence[float]) -> str:
    """`81.2 +- 0.3`, or a dash for nothing."""
    if not accuracies:
        return "-"
    mean = f"{100 * statistics.mean(accuracies):.1f}"
    return mean if len(accuracies) == 1 else f"{mean} +- {100 * statistics.stdev(accuracies):.1f}"


def show_minutes(minutes: float) -> str:
    """`12 s`, `3.5 min` or `2.1 h`."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.1f} min" if minutes < 60 else f"{minutes / 60:.1f} h"


def text_table(rows: Sequence[Row]) -> str:
    """The table for a terminal: names to the left, numbers to the right."""
    return text_columns(*table_cells(rows))


def markdown_table(rows: Sequence[Row]) -> str:
    """The table in Markdown, over what it was measured on."""
    first = rows[0]
    seeds = sorted({row.seed for row in rows})
    tested = first.test or "a held-out tenth of them"
    return (
        f"Accuracy (%) on {first.test_images:,} test images. Data: `{first.data}`, test: {tested}, weights "
        f"{first.weights}, seeds {', '.join(map(str, seeds))}.\n\n{markdown_columns(*table_cells(rows))}"
    )
