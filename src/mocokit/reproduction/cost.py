"""Measure the cost table's points: memory and time of a training step, by mechanism and number of negatives."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.engine.checkpoint import write_text_atomically
from mocokit.engine.machine import describe_machine
from mocokit.plan.measure_step import StepCost, measure_step

GROUP_ROWS = 32
"""Images that share BatchNorm statistics: one GPU's part of the batch in the papers."""

MOCO_BATCH = 256
"""The paper's batch, at which MoCo is measured over K: its queue grows, its batch does not."""

WAYS = ("moco", "end-to-end", "end-to-end, cached")
"""Mechanisms. cached: gradient cache with two BatchNorm groups at a time; loss and gradient are the whole batch's."""


@dataclass(frozen=True, kw_only=True)
class CostPoint:
    """A mechanism at a batch size and a number of negatives."""

    way: str
    """Mechanism, one of WAYS."""
    batch: int
    negatives: int
    """MoCo: K of the queue. End-to-end: the batch."""
    arch: str = "resnet10_w32"
    image_size: int = 48
    steps: int = 3
    """Timed steps, after one untimed step."""
    device: str = "cpu"

    @property
    def config(self) -> Config:
        """Config of the run whose step is measured."""
        groups = self.batch // GROUP_ROWS
        moco = self.way == "moco"
        settings: dict[str, object] = {
            "data.image_size": self.image_size,
            "data.global_batch_size": self.batch,
            "model.arch": self.arch,
            "method.bn_groups": groups,
            "method.micro_groups": min(2, groups) if "cached" in self.way else 0,
            "run.device": self.device,
        }
        settings |= {"method.queue_size": self.negatives} if moco else {}
        return replace_settings(get_preset("moco-v1" if moco else "end-to-end"), settings)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A point and its measured cost."""

    point: CostPoint
    cost: StepCost
    machine: dict[str, Any]
    """Machine that measured the point. Another machine may write the table."""


def plan_points(*, arch: str, image_size: int, device: str, most: int) -> list[CostPoint]:
    """Return the table's points.

    They are MoCo at batch 256 over K, MoCo with K = 65,536 over the batch, and both kinds of end-to-end over the batch,
    up to `most` images.
    """
    batches = [batch for batch in (64, 128, 256, 512, 1024, 2048, 4096) if batch <= most]
    pairs = [("moco", MOCO_BATCH, k) for k in (256, 1024, 4096, 16384, 65536, 262144)]
    pairs += [("moco", batch, 65536) for batch in batches if batch not in {MOCO_BATCH, 2048, 4096}]
    pairs += [(way, batch, batch) for batch in batches for way in ("end-to-end", "end-to-end, cached")]
    return [
        CostPoint(way=way, batch=batch, negatives=negatives, arch=arch, image_size=image_size, device=device)
        for way, batch, negatives in pairs
    ]


def measure(point: CostPoint) -> StepCost:
    """Return the cost of a step at `point`, measured in a process of its own.

    Raises:
        ValueError: The process failed, for lack of memory for example.

    """
    try:
        return measure_step(point.config, steps=point.steps)
    except ValueError as error:
        raise ValueError(f"cost: {point.way} at batch {point.batch}, K {point.negatives}: {error}") from error


def measure_all(
    points: Sequence[CostPoint], out: Path, *, on_point: Callable[[CostPoint, StepCost | None, str], None]
) -> list[Measured]:
    """Measure the points that are not in `out/points` yet, and return all that are known.

    Args:
        points: Points to measure.
        out: Folder of the cost table.
        on_point: Called for each point with its cost and "", or with None and the error of a failed measurement. A
            failed point is left out of the result.

    """
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
            write_text_atomically(path, json.dumps(asdict(one), indent=1) + "\n")
        on_point(point, one.cost, "")
        done.append(one)
    return done


def _load(path: Path, point: CostPoint) -> Measured | None:
    """Return the saved measurement of `point`; None if there is none or it is of other settings, such as the device."""
    if not path.is_file():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved["point"] != asdict(point):
        return None
    return Measured(point=point, cost=StepCost(**saved["cost"]), machine=saved["machine"])
