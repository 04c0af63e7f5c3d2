"""A table with the numbers found so far, as terminal text, Markdown and JSON. Cells that were not run stay empty."""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from mocokit.engine.checkpoint import write_text_atomically
from mocokit.engine.machine import describe_machine
from mocokit.report.text_tables import markdown_columns, text_columns
from mocokit.reproduction.results import MINUTES, Values
from mocokit.reproduction.table import Cell, Expected, Table


@dataclass(frozen=True, kw_only=True)
class FilledTable:
    """A table with the numbers found so far."""

    table: Table
    cells: tuple[Cell, ...]
    metrics: tuple[str, ...]
    """Columns of measured numbers."""
    values: Values
    setup: str
    """Description of the measured runs, in words: data and epochs."""
    small: bool = False
    """True if the measured runs are at small scale, where a cell stands at its `small_x`."""


def mean_and_deviation(values: list[float]) -> str:
    """Return `81.2 +- 0.3 (3)`: mean, sample standard deviation and count; only the number for one, "" for none."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.1f} ({len(values)})"


def show_expected(expected: Expected | None, sources: list[str]) -> str:
    """Return `66.2 [1]`, where [1] is the number of its source in `sources`; "" for None.

    Appends a new source to `sources`.
    """
    if expected is None:
        return ""
    if expected.source not in sources:
        sources.append(expected.source)
    return f"{expected.value:.1f} [{sources.index(expected.source) + 1}]"


def rows_of(filled: FilledTable) -> tuple[list[str], list[list[str]], list[str]]:
    """Return (header, one line a cell, sources of the paper's numbers)."""
    sources = list[str]()
    lines = list[list[str]]()
    moved = filled.small and any(cell.small_x is not None for cell in filled.cells)
    for cell in filled.cells:
        found = filled.values.get(cell.name, {})
        papers = [show_expected(cell.expected.get(metric), sources) for metric in filled.table.metrics]
        got = [mean_and_deviation(found.get(metric, [])) for metric in filled.metrics]
        minutes = found.get(MINUTES, [])
        place = ["" if cell.small_x is None else f"{cell.small_x:g}"] if moved else []
        lines.append([cell.name, *papers, *place, *got, f"{statistics.mean(minutes):.1f}" if minutes else ""])
    header = [
        "",
        *(f"paper: {metric}" for metric in filled.table.metrics),
        *([f"{filled.table.x_label} here"] if moved else []),
        *filled.metrics,
        "minutes a run",
    ]
    if not any(line[-1] for line in lines):  # runs on ImageNet record no minutes
        header = header[:-1]
        lines = [line[:-1] for line in lines]
    return header, lines, sources


def terminal_text(filled: FilledTable) -> str:
    """Return the table for a terminal, with the sources below."""
    header, lines, sources = rows_of(filled)
    notes = [f"[{number}] {source}" for number, source in enumerate(sources, start=1)]
    return "\n".join(
        [
            f"{filled.table.title} ({filled.table.source})",
            f"measured: {filled.setup}",
            "",
            text_columns(header, lines),
            "",
            *notes,
        ]
    )


def markdown_text(filled: FilledTable) -> str:
    """Return the table in Markdown, with the sources below."""
    header, lines, sources = rows_of(filled)
    notes = "".join(f"\\[{number}\\] {source}  \n" for number, source in enumerate(sources, start=1))
    return (
        f"# {filled.table.title}\n\n{filled.table.source}. The paper's numbers are of ImageNet; measured: "
        f"{filled.setup}. Mean, sample standard deviation and, in brackets, "
        f"number of runs.\n\n"
        f"{markdown_columns(header, lines)}\n{notes}"
    )


def save_table(filled: FilledTable, folder: Path) -> None:
    """Write `table.md` and `table.json`; the JSON also names the machine and the commit that wrote it."""
    numbers = {
        "table": filled.table.name,
        "source": filled.table.source,
        "setup": filled.setup,
        "cells": {
            cell.name: {
                "preset": cell.preset,
                "settings": dict(cell.settings),
                "expected": {metric: asdict(number) for metric, number in cell.expected.items()},
                "got": filled.values.get(cell.name, {}),
            }
            for cell in filled.cells
        },
        "machine": describe_machine(),
    }
    write_text_atomically(folder / "table.md", markdown_text(filled))
    write_text_atomically(folder / "table.json", json.dumps(numbers, indent=1) + "\n")
