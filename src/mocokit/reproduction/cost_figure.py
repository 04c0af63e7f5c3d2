"""The cost table as a plot: memory, and time of a step, over the number of negatives and at equal batch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mocokit.reproduction.cost import MOCO_BATCH, Measured, crossover, over_negatives, peak_megabytes, step_s
from mocokit.reproduction.cost_point import WAYS
from mocokit.reproduction.figure import MARKERS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_cost(measured: Sequence[Measured], path: Path) -> None:
    """Three panels as PNG: memory and seconds over negatives, the crossover marked; memory at equal batch."""
    figure = new_figure(11, 3.8)
    memory, time, equal = figure.subplots(1, 3)
    _over_negatives(memory, measured, peak_megabytes, "peak memory (MB)")
    _over_negatives(time, measured, step_s, "seconds a step")
    for marker, way in zip(MARKERS, WAYS, strict=False):
        own = sorted(_at_equal_batch(measured, way), key=lambda one: one.point.batch)
        equal.plot([one.point.batch for one in own], [peak_megabytes(one) for one in own], marker=marker, label=way)
    _log_log(equal, "batch (MoCo: K = 65,536)", "peak memory (MB)")
    figure.legend(*memory.get_legend_handles_labels(), fontsize=8, ncols=len(WAYS), loc="outside lower center")
    save_figure(figure, path)


def _at_equal_batch(measured: Sequence[Measured], way: str) -> list[Measured]:
    """MoCo with one K, the others as they are."""
    return [one for one in measured if one.point.way == way and (way != "moco" or one.point.negatives == 65536)]


def _over_negatives(axes: "Axes", measured: Sequence[Measured], value: Callable[[Measured], float], label: str) -> None:
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
