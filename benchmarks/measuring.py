"""What the benchmarks share: the machine in words, interleaved timing, a JSON file and a markdown table."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("mocokit", "lightly", "torch", "torchvision", "numpy", "Pillow", "opencv-python-headless")


def use_cores(count: int) -> None:
    """Keep this process and those that it starts to `count` cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    torch.set_num_threads(len(os.sched_getaffinity(0)))


def describe_machine() -> dict[str, Any]:
    """Processor, cores, versions and commit."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "commit": _commit(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Short hash, with a + when src/ or the benchmarks differ from it."""
    here = Path(__file__).resolve().parent.parent

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "benchmarks/*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def time_interleaved(
    sides: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 0
) -> dict[str, list[float]]:
    """Seconds of each call; each round calls every side once, so that a busy minute of the machine hits all of them.

    Args:
        sides: What to time, by name.
        rounds: Timed calls of each side.
        warm_up: Rounds before them that don't count.

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
    """How many times faster `fast` is: ratio of the medians, and the range of the rounds' own ratios."""
    of_rounds = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "ratio": statistics.median(slow) / statistics.median(fast),
        "lowest": min(of_rounds),
        "highest": max(of_rounds),
    }


def show_ratio(ratio: Mapping[str, float]) -> str:
    """`2.71x (2.65 to 2.80)`."""
    return f"{ratio['ratio']:.2f}x ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"


def save_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write `result` as JSON, with the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": describe_machine(), **result}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])
