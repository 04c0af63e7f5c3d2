"""The cost table: MoCo v2's Table 3 as published, the measured points, and the crossover between mechanisms."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from mocokit.config.schema import Config
from mocokit.engine.checkpoint import write_text_atomically
from mocokit.report.text_tables import markdown_columns
from mocokit.reproduction.cost import MOCO_BATCH, Measured

RECALL = "MoCo v2 Table 3 [paper recall]"


@dataclass(frozen=True, kw_only=True)
class PublishedCost:
    """One row of MoCo v2's Table 3: 8 V100 with 16 GB, ResNet-50, 200 epochs."""

    mechanism: str
    """Our name of the method."""
    batch: int
    gigabytes: float
    """Memory of one GPU."""
    hours: float | None
    """Hours of 200 epochs; None: impossible on that machine."""
    source: str


PUBLISHED = (
    PublishedCost(mechanism="moco", batch=256, gigabytes=5.0, hours=53, source=f"{RECALL}; hours: moco README"),
    PublishedCost(mechanism="end-to-end", batch=256, gigabytes=7.4, hours=65, source=RECALL),
    PublishedCost(mechanism="end-to-end", batch=4096, gigabytes=93.0, hours=None, source=f"{RECALL}, estimated"),
)


def published_cost(config: Config) -> str:
    """Return the published hours and memory of a run in words; "" if the table has no such run."""
    for row in PUBLISHED:
        same = (config.method.name, config.data.global_batch_size) == (row.mechanism, row.batch)
        if same and config.model.arch == "resnet50":
            hours = "" if row.hours is None else f"{row.hours * config.optim.epochs / 200:.0f} h and "
            return f"{hours}{row.gigabytes:.1f} GB a GPU on 8 V100 ({row.source})"
    return ""


# Functions of a `Measured`, for the curves.
peak_megabytes = attrgetter("cost.peak_megabytes")
step_s = attrgetter("cost.step_s")


def over_negatives(measured: Sequence[Measured], way: str) -> list[Measured]:
    """Return the points of a mechanism, sorted by negatives; of MoCo only those at MOCO_BATCH."""
    own = [one for one in measured if one.point.way == way and (way != "moco" or one.point.batch == MOCO_BATCH)]
    return sorted(own, key=lambda one: one.point.negatives)


def crossover(
    measured: Sequence[Measured], value: Callable[[Measured], float], *, way: str = "end-to-end"
) -> tuple[float, bool] | None:
    """Return the number of negatives above which `way` costs more than MoCo with as many.

    Both curves are straight between measured points in log-log scale.

    Returns:
        (number, True) if the curves cross between measured points, (fewest measured, False) if `way` costs more there
        already, or None if it costs more nowhere.

    """
    ours, theirs = ([(one.point.negatives, value(one)) for one in over_negatives(measured, w)] for w in ("moco", way))
    if not ours or not theirs:
        return None
    gaps = [(math.log(k), math.log(v) - math.log(interpolate(ours, k))) for k, v in theirs]
    if gaps[0][1] > 0:
        return theirs[0][0], False
    for (left, below), (right, above) in itertools.pairwise(gaps):
        if below <= 0 < above:
            return math.exp(left - below * (right - left) / (above - below)), True
    return None


def interpolate(curve: Sequence[tuple[float, float]], x: float) -> float:
    """Return the value of `curve` at `x`: straight lines in log-log scale, constant beyond both ends."""
    if x <= curve[0][0]:
        return curve[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x <= x1:
            share = (math.log(x) - math.log(x0)) / (math.log(x1) - math.log(x0))
            return math.exp(math.log(y0) + share * (math.log(y1) - math.log(y0)))
    return curve[-1][1]


def table_cells(measured: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Return the measured table: header, and one line a point."""
    header = ["way", "batch", "negatives", "peak MB", "s a step", "fastest to slowest", "ms an image"]
    lines = [
        [
            point.way,
            f"{point.batch:,}",
            f"{point.negatives:,}",
            f"{cost.peak_megabytes:,.0f}",
            f"{cost.step_s:.2f}",
            f"{cost.fastest_s:.2f} to {cost.slowest_s:.2f}",
            f"{1000 * cost.step_s / point.batch:.2f}",
        ]
        for point, cost in ((one.point, one.cost) for one in measured)
    ]
    return header, lines


def published_cells() -> tuple[list[str], list[list[str]]]:
    """Return the paper's table: header, and one line a row."""
    header = ["mechanism", "batch", "GB a GPU", "hours of 200 epochs", "source"]
    return header, [
        [row.mechanism, f"{row.batch:,}", f"{row.gigabytes:.1f}", f"{row.hours or 'n/a'}", row.source]
        for row in PUBLISHED
    ]


def findings(measured: Sequence[Measured]) -> list[str]:
    """Return one sentence for each part of the paper's claim that the points can test."""
    lines = list[str]()
    ours = over_negatives(measured, "moco")
    if len(ours) > 1:
        first = ours[0]
        last = ours[-1]
        key_megabytes = 128 * 4 / 2**20  # 128 floats
        grown = last.cost.peak_megabytes - first.cost.peak_megabytes
        added = (last.point.negatives - first.point.negatives) * key_megabytes
        lines.append(
            f"MoCo, batch {MOCO_BATCH}: {first.point.negatives:,} to {last.point.negatives:,} negatives add "
            f"{grown:.0f} MB ({added:.0f} MB of keys) to {first.cost.peak_megabytes:.0f} MB"
        )
    theirs = over_negatives(measured, "end-to-end")
    if len(theirs) > 1:
        first = theirs[0]
        last = theirs[-1]
        lines.append(
            f"end-to-end: {first.point.batch:,} to {last.point.batch:,} negatives, memory x "
            f"{last.cost.peak_megabytes / first.cost.peak_megabytes:.1f}"
        )
    for name, value in (("memory", peak_megabytes), ("time of a step", step_s)):
        if (found := crossover(measured, value)) is not None:
            number, between = found
            start = f"about {number:,.0f}" if between else f"{number:,.0f} (the fewest measured)"
            lines.append(f"{name}: end-to-end costs more than MoCo from {start} negatives on")
    return lines


def save_cost(measured: Sequence[Measured], out: Path) -> None:
    """Write `table.md` and `table.json` of at least one point."""
    point = measured[0].point
    published = markdown_columns(*published_cells(), words=("source",))
    text = (
        f"# Memory and time of a training step, by mechanism\n\n"
        f"{point.arch} at {point.image_size} px on {point.device}, fp32, groups of 32 images for BatchNorm, "
        f"{point.steps} steps each in a process of its own.\n\n"
        f"{markdown_columns(*table_cells(measured))}\n"
        + "".join(f"- {line}\n" for line in findings(measured))
        + f"\nThe paper's (8 V100, ResNet-50, 224 px):\n\n{published}"
    )
    write_text_atomically(out / "table.md", text)
    machines = list[dict[str, Any]]()
    for one in measured:
        if one.machine not in machines:
            machines.append(one.machine)
    points = [{**asdict(one.point), **asdict(one.cost), "machine": machines.index(one.machine)} for one in measured]
    numbers = {"points": points, "findings": findings(measured), "machines": machines}
    write_text_atomically(out / "table.json", json.dumps(numbers, indent=1) + "\n")
