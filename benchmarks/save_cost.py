"""Measure the cost of a checkpoint: time of training steps during a save against steps without one.

The training thread copies the state; another thread, which shares the cores, writes it. The extra time of a stretch of
steps that starts with a save is divided by the default interval between saves (run.save_minutes). That is the share of
training time that saves cost.

    python benchmarks/save_cost.py
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import measuring
import torch

from mocokit.config.presets import get_preset
from mocokit.config.schema import Config, RunConfig
from mocokit.config.toml import replace_settings
from mocokit.data.batch import ViewBatch
from mocokit.engine.background import BackgroundWriter
from mocokit.engine.checkpoint import copied_to_cpu, save_checkpoint
from mocokit.plan.bench import trainer
from mocokit.report.text_tables import markdown_columns
from mocokit.run.build import build_run
from mocokit.run.demo import sample_path
from mocokit.run.state import state_of

CASES: dict[str, dict[str, object]] = {
    "resnet18, 32 px, K 4,096": {
        "model.arch": "resnet18",
        "data.image_size": 32,
        "data.global_batch_size": 64,
        "method.queue_size": 4096,
    },
    "resnet50, 64 px, K 65,536": {
        "model.arch": "resnet50",
        "data.image_size": 64,
        "data.global_batch_size": 16,
        "method.queue_size": 65536,
    },
}


def measure(config: Config, work: Path, *, stretch_s: float, rounds: int, device: str) -> dict[str, Any]:
    """Return the seconds that one save costs, in total and on each thread, and its share of the default interval."""
    parts = build_run(config, torch.device(device))
    size = config.data.image_size
    batch_size = config.data.global_batch_size
    pixels = torch.randint(0, 256, (2, batch_size, 3, size, size), dtype=torch.uint8, device=device)
    batch = ViewBatch(query=pixels[0], key=pixels[1], image_ids=torch.arange(batch_size, device=device))
    writer = BackgroundWriter()
    copying = list[float]()
    writing = list[float]()
    train = trainer(parts)

    def seconds(num_steps: int) -> float:
        """Train `num_steps` steps and return the seconds."""
        begun = time.perf_counter()
        for step in range(num_steps):
            train(batch, step)
        return time.perf_counter() - begun

    num_steps = max(3, round(stretch_s / min(seconds(1) for _ in range(4))))

    def save() -> None:
        """Save a checkpoint as a training run does: wait for the last write, copy, write on another thread."""
        begun = time.perf_counter()
        writer.wait()
        state = copied_to_cpu({**state_of(parts, config), "step": 1})
        copying.append(time.perf_counter() - begun)

        def write() -> None:
            begun = time.perf_counter()
            save_checkpoint(work, state, step=1, keep_last=1)
            writing.append(time.perf_counter() - begun)

        writer.start(write)

    def saving() -> None:
        """Run a stretch of steps that starts with a save."""
        save()
        seconds(num_steps)
        writer.wait()

    sides = {"plain": lambda: seconds(num_steps), "saving": saving}
    times = measuring.time_interleaved(sides, rounds=rounds, warm_up=1)
    extra_s = statistics.median(b - a for a, b in zip(times["plain"], times["saving"], strict=True))
    writer.close()
    return {
        "bytes": next(work.glob("step_*.pt")).stat().st_size,
        "steps": num_steps,
        "seconds": times,
        "copy_s": statistics.median(copying),
        "write_s": statistics.median(writing),
        "extra_s": extra_s,
        "share": extra_s / (60 * RunConfig().save_minutes),
    }


def main() -> None:
    """Measure both cases, print the table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stretch-s", type=float, default=5.0, help="seconds of steps in a stretch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/save_cost"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "save_cost.json")
    args = parser.parse_args()
    measuring.use_cores(2)
    cases = {}
    for name, settings in CASES.items():
        shutil.rmtree(args.work, ignore_errors=True)
        fixed = {
            "data.source": str(sample_path("train")),
            "data.workers": 0,
            "run.device": args.device,
            "method.bn_groups": 2,
        }
        config = replace_settings(get_preset("moco-v2"), {**fixed, **settings})
        cases[name] = measure(config, args.work, stretch_s=args.stretch_s, rounds=args.rounds, device=args.device)
    measuring.save_result(args.results, {"cases": cases})
    rows = [
        (
            name,
            f"{case['bytes'] / 1e6:.0f} MB",
            f"{case['copy_s']:.3f} s",
            f"{case['write_s']:.2f} s",
            f"{case['extra_s']:.2f} s",
            f"{case['share']:.2%}",
        )
        for name, case in cases.items()
    ]
    header = (
        "run",
        "checkpoint",
        "copy (training waits)",
        "write (beside it)",
        "a save costs",
        "share of the interval",
    )
    print(markdown_columns(header, rows))


if __name__ == "__main__":
    main()
