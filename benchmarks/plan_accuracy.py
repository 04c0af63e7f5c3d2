"""Compare the planner's step time and memory with measured ones, on one core of this machine.

    python benchmarks/plan_accuracy.py

Four configurations calibrate three constants: operations per second, bytes per second, and the memory that libraries
hold once they are in use. Eight other configurations are predicted with these constants.
Time is CPU time, which other work on the machine disturbs less than wall-clock time.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from measuring import save_result, use_cores

from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.plan.cost_model import memory_by_part
from mocokit.plan.count_flops import StepCounts, count_step
from mocokit.plan.measure_step import measure_step
from mocokit.report.text_tables import markdown_columns

CALIBRATION = [
    ("resnet10_w32", 32, 32, 0),
    ("resnet18", 32, 16, 0),
    ("resnet10_w16", 64, 32, 0),
    ("resnet18", 64, 16, 0),
]
VALIDATION = [
    ("resnet10_w32", 64, 32, 0),
    ("resnet10_w64", 32, 32, 0),
    ("resnet10_w64", 64, 16, 2),
    ("resnet18", 48, 32, 0),
    ("resnet18", 64, 32, 1),
    ("resnet34", 32, 16, 0),
    ("resnet34", 64, 16, 0),
    ("resnet50", 64, 16, 0),
]
"""(arch, image size, global batch, micro groups); small stem, 4 BatchNorm groups, K 4096, fp32."""
RESULT = Path(__file__).parent / "results" / "plan_accuracy.json"


def build_config(arch: str, size: int, batch: int, micro: int) -> Config:
    """Return the config of one row."""
    settings: Mapping[str, object] = {
        "model.arch": arch,
        "data.image_size": size,
        "data.global_batch_size": batch,
        "method.micro_groups": micro,
        "method.bn_groups": 4,
        "method.queue_size": 4096,
        "run.precision": "fp32",
        "data.mean": (0.5, 0.5, 0.5),
        "data.std": (0.5, 0.5, 0.5),
    }
    return replace_settings(get_preset("moco-v2-small"), settings)


def measure(row: tuple[str, int, int, int]) -> dict[str, float]:
    """Return the CPU seconds of a step on one core, the peak memory in use, and the peak with glibc's cache."""
    cost, in_use = (measure_step(build_config(*row), without_holes=choice) for choice in (False, True))
    return {
        "step_s": cost.cpu_s,
        "memory_bytes": in_use.peak_megabytes * 2**20,
        "resident_bytes": cost.peak_megabytes * 2**20,
    }


def _predicted_bytes(config: Config, counts: StepCounts) -> float:
    return sum(memory_by_part(config, counts, world_size=1, num_images=0, device_type="cpu").values())


def _fit(counts: list[StepCounts], seconds: list[float]) -> tuple[float, float]:
    """Return the seconds of an operation and of a byte: least squares of relative errors, neither below zero."""
    rows = np.array([(count.flops / s, count.moved_bytes / s) for count, s in zip(counts, seconds, strict=True)])
    best = [max(0.0, value) for value in np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]]
    if min(best) == 0.0:
        only = int(np.argmax(best))
        best[only] = float(rows[:, only].sum() / (rows[:, only] ** 2).sum())
    return best[0], best[1]


def main() -> None:
    """Calibrate, predict, measure, print the comparison, and write JSON."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    use_cores(1)
    known = [measure(row) for row in CALIBRATION]
    counted = [count_step(build_config(*row)) for row in CALIBRATION]
    per_flop, per_byte = _fit(counted, [row["step_s"] for row in known])
    libraries = statistics.median(
        measured["memory_bytes"] - _predicted_bytes(build_config(*row), counts)
        for measured, row, counts in zip(known, CALIBRATION, counted, strict=True)
    )
    rows: list[dict[str, Any]] = []
    for row in VALIDATION:
        config = build_config(*row)
        measured = measure(row)
        counts = count_step(config)
        step_s = per_flop * counts.flops + per_byte * counts.moved_bytes
        memory = libraries + _predicted_bytes(config, counts)
        rows.append(
            {
                "config": row,
                "measured": measured,
                "step_s": step_s,
                "memory_bytes": memory,
                "time_error": step_s / measured["step_s"] - 1,
                "memory_error": memory / measured["memory_bytes"] - 1,
            }
        )
        print(row, f"time {rows[-1]['time_error']:+.0%} memory {rows[-1]['memory_error']:+.0%}", flush=True)
        save_result(
            RESULT,
            {
                "libraries_bytes": libraries,
                "flops_per_s": 1 / per_flop if per_flop else None,
                "bytes_per_s": 1 / per_byte if per_byte else None,
                "rows": rows,
            },
        )
    cells = [
        [
            f"{r['config'][0]}, {r['config'][1]} px, batch {r['config'][2]}, micro {r['config'][3]}",
            f"{r['step_s']:.2f}",
            f"{r['measured']['step_s']:.2f}",
            f"{r['time_error']:+.0%}",
            f"{r['memory_bytes'] / 1e6:.0f}",
            f"{r['measured']['memory_bytes'] / 1e6:.0f}",
            f"{r['memory_error']:+.0%}",
            f"{r['measured']['resident_bytes'] / 1e6:.0f}",
        ]
        for r in rows
    ]
    header = (
        "configuration",
        "predicted s",
        "measured s",
        "error",
        "predicted MB",
        "in use MB",
        "error",
        "resident MB",
    )
    print(markdown_columns(header, cells))


if __name__ == "__main__":
    main()
