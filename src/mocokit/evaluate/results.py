"""Rows of evaluation results, each with the id of its protocol; kept as one JSON file and one Markdown table."""

import json
import statistics
import tempfile
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
    data_id: str = ""
    """Digest of the identity of the training images; empty: an older mocokit wrote the row."""
    test_id: str = ""
    """Digest of the identity of the test images; empty: a held-out tenth, or an older mocokit wrote the row."""
    unreadable: int = 0
    """Training and test images that could not be read; they are not in `train_images` and `test_images`."""

    @property
    def images(self) -> tuple[str, ...]:
        """Data set of the row: the identities, wherever the images are; without them, the locations."""
        return (self.data_id, self.test_id) if self.data_id else ("", self.data, self.test)

    @property
    def key(self) -> tuple[object, ...]:
        """Identity of the row: a newer row with the same key replaces it."""
        return self.protocol, self.features, self.seed, self.images


def require_writable(folder: Path) -> Path:
    """Return `folder`, made if it is absent; raise ValueError if results can't be written there, before computing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"out={folder}: the results can't be written there ({reason}); name another folder with --out"
        ) from error
    return folder


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
    """Return the header and one line per protocol, for one data set: percent, over seeds mean +- sample deviation."""
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
    """Return a table in Markdown for each data set, below a line that tells the images, the weights and the seeds."""
    sets = dict.fromkeys(row.images for row in rows)
    return "\n".join(_table_of_set([row for row in rows if row.images == images]) for images in sets)


def _table_of_set(rows: Sequence[Row]) -> str:
    last = rows[-1]  # the newest, whose locations hold today
    seeds = sorted({row.seed for row in rows})
    data = f"`{last.data}`{_short_id(last.data_id)}"
    tested = f"{last.test}{_short_id(last.test_id)}" if last.test else "a held-out tenth of them"
    lost = max(row.unreadable for row in rows)
    unreadable = f" {lost:,} images could not be read and are left out." if lost else ""
    return (
        f"Accuracy (%) on {last.test_images:,} test images. Data: {data}, test: {tested}, weights {last.weights}, "
        f"seeds {', '.join(map(str, seeds))}.{unreadable}\n\n{markdown_columns(*table_cells(rows))}"
    )


def _short_id(identity: str) -> str:
    return f" ({identity[:12]})" if identity else ""
