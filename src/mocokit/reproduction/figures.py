"""Plots of the tables as PNG: the paper's numbers beside the measured ones, and the cost of a training step."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mocokit.engine.checkpoint import write_atomically
from mocokit.reproduction.cost import MOCO_BATCH, WAYS, Measured
from mocokit.reproduction.cost_table import crossover, over_negatives, peak_megabytes, step_s
from mocokit.reproduction.rendering import FilledTable
from mocokit.reproduction.table import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "os^Dv"

Points = Mapping[str, Sequence[float]]
"""Cell -> percent, one number a run."""


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of that size in inches; needs no display.

    Raises:
        ValueError: matplotlib is not installed.

    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plot: needs matplotlib; pip install 'mocokit[reproduce]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG atomically."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def plot_table(filled: FilledTable, path: Path) -> None:
    """Plot the table's first metric: the paper's numbers left, the measured ones right with error bars.

    A side without numbers is left out. At small scale the measured points stand at the cells' `small_x`.
    """
    metric = filled.table.metrics[0]
    paper = {cell.name: [cell.expected[metric].value] for cell in filled.cells if metric in cell.expected}
    got = {cell.name: values for cell in filled.cells if (values := filled.values.get(cell.name, {}).get(metric))}
    sides = [("paper: ImageNet", paper, False), (f"measured: {filled.setup}", got, filled.small)]
    sides = [side for side in sides if side[1]]
    figure = new_figure(4.2 * len(sides), 3.2)
    for axes, (title, points, small_x) in zip(figure.subplots(1, len(sides), squeeze=False)[0], sides, strict=True):
        drawn = [cell for cell in filled.cells if cell.name in points]
        if filled.table.x_label:
            draw_curves(axes, filled.cells, points, small_x=small_x)
            axes.set_xlabel(filled.table.x_label)
            axes.set_ylabel(f"{metric} accuracy (%)")
            if filled.table.log_x:
                _log_ticks(axes, sorted({_x(cell, small_x=small_x) for cell in drawn}))
        else:
            _bars(axes, drawn, points)
            axes.set_xlabel(f"{metric} accuracy (%)")
        axes.set_title(title, fontsize=8)
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def _x(cell: Cell, *, small_x: bool) -> float:
    x = cell.small_x if small_x and cell.small_x is not None else cell.x
    assert x is not None, f"{cell.name} has no position on the x axis"
    return x


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def draw_curves(axes: "Axes", cells: Sequence[Cell], points: Points, *, small_x: bool) -> None:
    """Draw one curve a series: means, with sample standard deviations as error bars.

    `cells` are all cells of the table, so that a series has the same color and marker on both sides of the plot.
    """
    for number, (marker, series) in enumerate(zip(MARKERS, dict.fromkeys(cell.series for cell in cells), strict=False)):
        own = [cell for cell in cells if cell.series == series and cell.name in points]
        if not own:
            continue
        axes.errorbar(
            [_x(cell, small_x=small_x) for cell in own],
            [statistics.mean(points[cell.name]) for cell in own],
            yerr=[_deviation(points[cell.name]) for cell in own],
            marker=marker,
            color=f"C{number}",
            capsize=3,
            label=series,
        )
    if any(cell.series for cell in cells):
        axes.legend(fontsize=8)


def _log_ticks(axes: "Axes", places: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:g}" for place in places], rotation=45, fontsize=8)
    axes.minorticks_off()


def _bars(axes: "Axes", cells: Sequence[Cell], points: Points) -> None:
    """Draw horizontal bars, first cell on top. The axis starts near the lowest number: what matters is differences."""
    names = [cell.name for cell in cells][::-1]
    means = [statistics.mean(points[cell.name]) for cell in cells][::-1]
    deviations = [_deviation(points[cell.name]) for cell in cells][::-1]
    axes.barh(names, means, xerr=deviations, capsize=3, color="tab:blue", alpha=0.75, height=0.6)
    least = min(mean - deviation for mean, deviation in zip(means, deviations, strict=True))
    axes.set_xlim(left=max(0.0, 5 * (least // 5) - 5))  # the multiple of 5 below it, and 5 points of room
    axes.tick_params(labelsize=8)


def plot_cost(measured: Sequence[Measured], path: Path) -> None:
    """Plot memory and seconds over the number of negatives, with the crossover marked, and memory at equal batch."""
    figure = new_figure(11, 3.8)
    memory, time, equal = figure.subplots(1, 3)
    _plot_over_negatives(memory, measured, peak_megabytes, "peak memory (MB)")
    _plot_over_negatives(time, measured, step_s, "seconds a step")
    for marker, way in zip(MARKERS, WAYS, strict=False):
        # Of MoCo, only the points with the paper's K: the others vary K at one batch.
        own = [one for one in measured if one.point.way == way and (way != "moco" or one.point.negatives == 65536)]
        own.sort(key=lambda one: one.point.batch)
        equal.plot([one.point.batch for one in own], [peak_megabytes(one) for one in own], marker=marker, label=way)
    _log_log(equal, "batch (MoCo: K = 65,536)", "peak memory (MB)")
    figure.legend(*memory.get_legend_handles_labels(), fontsize=8, ncols=len(WAYS), loc="outside lower center")
    save_figure(figure, path)


def _plot_over_negatives(
    axes: "Axes", measured: Sequence[Measured], value: Callable[[Measured], float], label: str
) -> None:
    for marker, way in zip(MARKERS, WAYS, strict=False):
        own = over_negatives(measured, way)
        name = f"MoCo, batch {MOCO_BATCH}" if way == "moco" else f"{way}: batch = negatives"
        axes.plot([one.point.negatives for one in own], [value(one) for one in own], marker=marker, label=name)
    if (found := crossover(measured, value)) is not None and found[1]:
        axes.axvline(found[0], color="gray", linestyle=":")
        axes.set_title(f"crossover at about {found[0]:,.0f} negatives", fontsize=8)
    _log_log(axes, "number of negatives", label)


def _log_log(axes: "Axes", x_label: str, y_label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
