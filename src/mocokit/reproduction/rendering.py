"""A table as it stands: for the terminal, as Markdown and as JSON; what was not run stays empty."""

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
class Filled:
    """A table with the numbers found so far."""

    table: Table
    cells: tuple[Cell, ...]
    metrics: tuple[str, ...]
    """Columns that are measured."""
    values: Values
    setup: str
    """What the measured numbers are of, in words."""
    small: bool = False
    """Whether the measured cells are at small scale, where a cell's place on the axis may be another."""


def mean_and_deviation(values: list[float]) -> str:
    """`81.2 +- 0.3 (3)`: mean, sample standard deviation and number of runs; one number alone; nothing for none."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.1f} ({len(values)})"


def show_expected(expected: Expected | None, sources: list[str]) -> str:
    """`66.2 [1]`, the number of its source in `sources`, which grows when it is new; nothing for none."""
    if expected is None:
        return ""
    if expected.source not in sources:
        sources.append(expected.source)
    return f"{expected.value:.1f} [{sources.index(expected.source) + 1}]"


def rows_of(filled: Filled) -> tuple[list[str], list[list[str]], list[str]]:
    """(header, a line a cell, sources of the paper's numbers)."""
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
    if not any(line[-1] for line in lines):  # not known of runs on other machines
        header = header[:-1]
        lines = [line[:-1] for line in lines]
    return header, lines, sources


def terminal_text(filled: Filled) -> str:
    """The table for a terminal, its sources below."""
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


def markdown_text(filled: Filled) -> str:
    """The same in Markdown."""
    header, lines, sources = rows_of(filled)
    notes = "".join(f"\\[{number}\\] {source}  \n" for number, source in enumerate(sources, start=1))
    return (
        f"# {filled.table.title}\n\n{filled.table.source}. The paper's numbers are of ImageNet; measured: "
        f"{filled.setup}. Mean, sample standard deviation and, in brackets, "
        f"number of runs.\n\n"
        f"{markdown_columns(header, lines)}\n{notes}"
    )


def save_table(filled: Filled, folder: Path) -> None:
    """Write `table.md` and `table.json` into `folder`; the latter tells the machine and the commit that wrote it."""
    markdown = markdown_text(filled)
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
    text = json.dumps(numbers, indent=1) + "\n"
    write_text_atomically(folder / "table.md", markdown)
    write_text_atomically(folder / "table.json", text)
