"""A table as a plot: the paper's numbers on the left, the measured ones on the right, with error bars."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mocokit.engine.checkpoint import write_atomically
from mocokit.reproduction.rendering import Filled
from mocokit.reproduction.table import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "os^Dv"

Points = Mapping[str, Sequence[float]]
"""Cell -> percent, a number a run."""


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of that size (inches), drawn without a window.

    Raises:
        ValueError: matplotlib is not installed; the message tells how.

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
    """Write a PNG, whole or not at all."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def plot_table(filled: Filled, path: Path) -> None:
    """Plot the table's first metric as PNG; a side without numbers is left out.

    At small scale the measured points stand at the cells' `small_x`.
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
    assert x is not None, f"{cell.name} has no place on the axis"
    return x


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def draw_curves(axes: "Axes", cells: Sequence[Cell], points: Points, *, small_x: bool) -> None:
    """One curve a series, means with sample deviations as error bars; a series looks the same wherever it is drawn."""
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
    """The first cell on top; the axis starts near the lowest number, as the differences are what is asked."""
    names = [cell.name for cell in cells][::-1]
    means = [statistics.mean(points[cell.name]) for cell in cells][::-1]
    deviations = [_deviation(points[cell.name]) for cell in cells][::-1]
    axes.barh(names, means, xerr=deviations, capsize=3, color="tab:blue", alpha=0.75, height=0.6)
    least = min(mean - deviation for mean, deviation in zip(means, deviations, strict=True))
    axes.set_xlim(left=max(0.0, 5 * (least // 5) - 5))
    axes.tick_params(labelsize=8)
