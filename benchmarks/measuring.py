"""Functions that the benchmarks share: number of cores, interleaved timing, ratios, and a JSON file of results."""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mocokit.engine.machine import describe_machine

PEERS = ("lightly", "numpy", "Pillow")


def use_cores(count: int) -> None:
    """Pin this process and its children to `count` cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    torch.set_num_threads(len(os.sched_getaffinity(0)))


def describe_sides() -> dict[str, Any]:
    """Return a description of the machine and the versions of the compared libraries."""
    return {**describe_machine(), "versions": {package: _version(package) for package in PEERS}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def time_interleaved(
    sides: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 0
) -> dict[str, list[float]]:
    """Return the seconds of each call, by side.

    Each round calls every side once, so that a busy minute of the machine affects all sides alike.

    Args:
        sides: Name -> function to time.
        rounds: Timed calls of each side.
        warm_up: Untimed rounds before these.

    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Return how many times faster `fast` is: ratio of medians, and lowest and highest ratio of a round."""
    of_rounds = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "ratio": statistics.median(slow) / statistics.median(fast),
        "lowest": min(of_rounds),
        "highest": max(of_rounds),
    }


def show_ratio(ratio: Mapping[str, float]) -> str:
    """Return a ratio as `2.71x (2.65 to 2.80)`."""
    return f"{ratio['ratio']:.2f}x ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"


def save_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write `result` and a description of the machine as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": describe_sides(), **result}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
