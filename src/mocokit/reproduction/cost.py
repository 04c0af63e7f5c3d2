"""The cost table, measured here: memory and time of a step against the number of negatives, by mechanism."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mocokit.engine.checkpoint import write_text_atomically
from mocokit.engine.machine import describe_machine
from mocokit.plan.measure_step import StepCost
from mocokit.report.text_tables import markdown_columns
from mocokit.reproduction.cost_point import CostPoint, measure
from mocokit.reproduction.cost_table import PUBLISHED

MOCO_BATCH = 256
"""The paper's; its queue grows, its batch doesn't."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A point and what it cost."""

    point: CostPoint
    cost: StepCost
    machine: dict[str, Any]
    """That measured it, which need not be the one that writes the table."""


def peak_megabytes(one: Measured) -> float:
    """Of a point."""
    return one.cost.peak_megabytes


def step_s(one: Measured) -> float:
    """Of a point."""
    return one.cost.step_s


def plan_points(*, arch: str, image_size: int, device: str, most: int) -> list[CostPoint]:
    """MoCo at one batch over K, all ways at equal batch, and end-to-end up to `most` images."""
    batches = [batch for batch in (64, 128, 256, 512, 1024, 2048, 4096) if batch <= most]
    pairs = [("moco", MOCO_BATCH, k) for k in (256, 1024, 4096, 16384, 65536, 262144)]
    pairs += [("moco", batch, 65536) for batch in batches if batch not in {MOCO_BATCH, 2048, 4096}]
    pairs += [(way, batch, batch) for batch in batches for way in ("end-to-end", "end-to-end, cached")]
    return [
        CostPoint(way=way, batch=batch, negatives=negatives, arch=arch, image_size=image_size, device=device)
        for way, batch, negatives in pairs
    ]


def measure_all(
    points: Sequence[CostPoint], out: Path, *, on_point: Callable[[CostPoint, StepCost | None, str], None]
) -> list[Measured]:
    """Measure what isn't in `out/points` yet, each in a process of its own; what fails is told and left out."""
    done = list[Measured]()
    machine = describe_machine()
    for point in points:
        path = out / "points" / f"{point.way.replace(', ', '-')}_b{point.batch}_k{point.negatives}.json"
        one = _load(path, point)
        if one is None:
            try:
                one = Measured(point=point, cost=measure(point), machine=machine)
            except ValueError as error:
                on_point(point, None, str(error))
                continue
            _save(path, asdict(one))
        on_point(point, one.cost, "")
        done.append(one)
    return done


def _load(path: Path, point: CostPoint) -> Measured | None:
    """What was measured before; that of another network or machine setting doesn't count."""
    if not path.is_file():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved["point"] != asdict(point):
        return None
    return Measured(point=point, cost=StepCost(**saved["cost"]), machine=saved["machine"])


def _save(path: Path, numbers: object) -> None:
    write_text_atomically(path, json.dumps(numbers, indent=1) + "\n")


def over_negatives(measured: Sequence[Measured], way: str) -> list[Measured]:
    """The curve of a way over the number of negatives; MoCo's is that of one batch."""
    own = [one for one in measured if one.point.way == way and (way != "moco" or one.point.batch == MOCO_BATCH)]
    return sorted(own, key=lambda one: one.point.negatives)


def crossover(
    measured: Sequence[Measured], value: Callable[[Measured], float], *, way: str = "end-to-end"
) -> tuple[float, bool] | None:
    """Number of negatives from which `way` costs more than MoCo with as many, by straight lines in log-log.

    Returns:
        (number, whether it lies between measured points rather than at the first), or None: it never does so.

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
    """Straight lines in log-log; flat beyond the ends."""
    if x <= curve[0][0]:
        return curve[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x <= x1:
            share = (math.log(x) - math.log(x0)) / (math.log(x1) - math.log(x0))
            return math.exp(math.log(y0) + share * (math.log(y1) - math.log(y0)))
    return curve[-1][1]


def table_cells(measured: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Header and a line a point."""
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
    """The paper's table likewise."""
    header = ["mechanism", "batch", "GB a GPU", "hours of 200 epochs", "source"]
    return header, [
        [row.mechanism, f"{row.batch:,}", f"{row.gigabytes:.1f}", f"{row.hours or 'n/a'}", row.source]
        for row in PUBLISHED
    ]


def findings(measured: Sequence[Measured]) -> list[str]:
    """What the points say about the paper's claim."""
    lines = list[str]()
    ours = over_negatives(measured, "moco")
    if len(ours) > 1:
        (first, last) = (ours[0], ours[-1])  # C floats a key
        queue = 128 * 4 / 2**20
        grown = last.cost.peak_megabytes - first.cost.peak_megabytes
        added = (last.point.negatives - first.point.negatives) * queue
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
            lines.append(f"{name}: end-to-end costs more than MoCo from {_from(*found)} negatives on")
    return lines


def _from(number: float, between: bool) -> str:
    return f"about {number:,.0f}" if between else f"{number:,.0f} (the fewest measured)"


def save_cost(measured: Sequence[Measured], out: Path) -> None:
    """Write `table.md` and `table.json` of one point at least."""
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
    _save(out / "table.json", {"points": points, "findings": findings(measured), "machines": machines})
