"""Measure how much of the gradient sum over ranks runs during the backward pass, and the time that this saves.

    python experiments/overlap.py

Two ranks talk over one slow link: the loopback device of a network namespace, throttled to each rate in turn (needs
root, `ip` and `tc`). Two kinds of steps alternate: gradients are summed as in training, or in one flat buffer after the
backward pass. One step of the first kind is traced; the trace tells which part of the summing ran during backward. The
machine must be idle.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mocokit import distributed
from mocokit.config.presets import get_preset
from mocokit.config.toml import replace_settings
from mocokit.data.batch import ViewBatch
from mocokit.distributed.gradients import BucketedGradientSum, GradientSum, Loss
from mocokit.engine.precision import Precision
from mocokit.engine.train import train_step
from mocokit.report.text_tables import markdown_columns
from mocokit.run.build import build_trained

RANKS = 2
BATCH = 32
SIDE_PX = 64
Span = tuple[float, float]


class SumAfterwards(GradientSum):
    """Sum of the gradients over ranks in one flat buffer, after the last backward of a step.

    Args:
        parameters: Parameters, in the same order on all ranks.

    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.is_last = False

    def forward(self, loss: Loss, *args: Any, is_last: bool) -> tuple[Tensor, Any]:
        """Return `loss(*args)`."""
        self.is_last = is_last
        return loss(*args)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`; after the step's last one, sum all gradients over ranks in one go."""
        loss.backward()
        if not self.is_last:
            return
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def work(out: Path, steps: int) -> None:
    """Run one rank. The first one writes the seconds of each step of both kinds and the times of the trace to `out`."""
    config = replace_settings(
        get_preset("moco-v2"),
        {
            "model.arch": "resnet18",
            "data.image_size": SIDE_PX,
            "data.global_batch_size": BATCH,
            "method.bn_groups": RANKS,
            "method.queue_size": 4096,
            "run.precision": "fp32",
        },
    )
    precision = Precision("fp32", measure.CPU)
    with distributed.session("cpu"):
        method, optimizer = build_trained(
            config,
            precision,
            measure.CPU,
            mean=config.data.mean,
            std=config.data.std,
            num_images=10_000,
            total_steps=99,
        )
        sums: dict[str, GradientSum] = {
            "while backward runs": BucketedGradientSum(method.parameters()),
            "afterwards": SumAfterwards(method.parameters()),
        }
        generator = torch.Generator().manual_seed(distributed.rank())

        def step(gradients: GradientSum, number: int) -> None:
            """Train one step on noise."""
            shape = (BATCH // RANKS, 3, SIDE_PX, SIDE_PX)
            query, key = (torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(2))
            batch = ViewBatch(query=query, key=key, image_ids=torch.arange(BATCH // RANKS))
            train_step(method, batch, number, gradients=gradients, optimizer=optimizer, precision=precision)

        seconds: dict[str, list[float]] = {name: [] for name in sums}
        for number in range(steps + 1):
            for name, gradients in sums.items():
                distributed.barrier()
                seconds[name].append(_time(partial(step, gradients, number)))
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            step(sums["while backward runs"], steps)
    if distributed.started_as_main():
        spans = [(event.name, event.time_range.start, event.time_range.end) for event in trace.events() or ()]
        seconds = {name: values[1:] for name, values in seconds.items()}  # the first step loads libraries
        out.write_text(json.dumps({"seconds": seconds, **read_trace(spans)}), encoding="utf-8")


def _time(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def read_trace(spans: list[tuple[str, float, float]]) -> dict[str, float]:
    """Return the milliseconds of the backward pass, of summing and of both at once, and the number of buckets.

    `spans` holds (name, start, end), in microseconds.
    """
    nodes = [(start, end) for name, start, end in spans if "evaluate_function" in name]
    backward = (min(start for start, _ in nodes), max(end for _, end in nodes))
    summing = merge([(start, end) for name, start, end in spans if name == "gloo:all_reduce"])
    inside = [(max(start, backward[0]), min(end, backward[1])) for start, end in summing]
    return {
        "backward_ms": (backward[1] - backward[0]) / 1000,
        "summing_ms": sum(end - start for start, end in summing) / 1000,
        "both_ms": sum(max(0.0, end - start) for start, end in inside) / 1000,
        "buckets": sum(name == "gloo:all_reduce" for name, _, _ in spans),
    }


def merge(spans: list[Span]) -> list[Span]:
    """Return sorted spans that cover the same times without overlap."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def measure_link(rate: str, out: Path, steps: int) -> dict[str, Any]:
    """Measure one rate of the link, such as 1gbit."""
    throttle = f"ip link set lo up && tc qdisc add dev lo root tbf rate {rate} burst 256kb latency 400ms"
    command = [*measure.torchrun(RANKS), str(Path(__file__)), "--worker", str(out), "--steps", str(steps)]
    namespace = ["unshare", "--net", "sh", "-c", f'{throttle} && exec "$@"', "sh", *command]
    subprocess.run(namespace, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return {"rate": rate, **json.loads(out.read_text(encoding="utf-8"))}


def table_of(links: list[dict[str, Any]]) -> str:
    """Return a Markdown table: one row a rate."""
    header = [
        "link",
        "step, summed afterwards",
        "step, summed while backward runs",
        "backward",
        "summing",
        "of it during backward",
    ]
    lines = []
    for link in links:
        after, during = (
            1000 * statistics.median(link["seconds"][name]) for name in ("afterwards", "while backward runs")
        )
        share = link["both_ms"] / link["summing_ms"]
        lines.append(
            [
                link["rate"],
                f"{after:.0f} ms",
                f"{during:.0f} ms",
                f"{link['backward_ms']:.0f} ms",
                f"{link['summing_ms']:.0f} ms",
                f"{share:.0%}",
            ]
        )
    return markdown_columns(header, lines)


def main() -> None:
    """Measure all rates; with --worker, run one rank of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", nargs="+", default=["10gbit", "2gbit", "1gbit"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--worker", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/overlap"))
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.steps)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    links = [measure_link(rate, args.out / f"{rate}.json", args.steps) for rate in args.rates]
    settings = {"ranks": RANKS, "global_batch_size": BATCH, "image_size": SIDE_PX, "arch": "resnet18"}
    measure.save(Path("experiments/results/overlap.json"), {**settings, "links": links})
    print(table_of(links))


if __name__ == "__main__":
    main()
