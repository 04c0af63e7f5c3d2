"""Train on two ranks for an hour and test whether their memory, file handles, threads or processes grow.

    python experiments/soak.py --minutes 60
    python experiments/soak.py --judge            # evaluate the samples of a finished run

Every epoch (20 steps) the run saves, exports the backbone and runs the kNN monitor. These move memory up and down by
some 30 MB, and neighbouring samples are correlated, so the standard error of a line through them is too small. The test
is therefore on the least memory held: a leak never gives memory back.
Writes experiments/results/soak.json and the paragraph in docs/reliability.md.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
from fault_runs import children, logged_steps, rank_pids
from fault_table import write_document

from mocokit.run.demo import sample_path

ROOT = Path(__file__).resolve().parent.parent
RANKS = 2
FLAGS = [
    *("--data", str(sample_path("train")), "--test", str(sample_path("val")), "--epochs", "1000000"),
    *("--global-batch-size", "112", "--bn-groups", "4", "--arch", "resnet10_w32", "--model.stem", "imagenet"),
    *("--image-size", "32", "--method.queue-size", "1120", "--device", "cpu", "--precision", "fp32", "--workers", "1"),
    *("--run.log-every", "1", "--run.knn-every", "1"),
]
STEPS_PER_EPOCH = 20
SAMPLE_S = 10.0
WARM_UP_SHARE = 1 / 6
"""Share of the time that is left out at the start, while caches, pools and the queue fill."""

FLAT_MB_PER_HOUR = 5.0
"""Allowed rise of the least memory held: under a gigabyte in a week."""

Sample = dict[str, float]


def sample(pid: int) -> Sample:
    """Return resident memory in MB, open file handles, threads and loader processes of one rank, from /proc."""
    folder = Path("/proc", str(pid))
    status = dict(line.split(":", 1) for line in (folder / "status").read_text(encoding="utf-8").splitlines())
    return {
        "memory_mb": int(status["VmRSS"].split()[0]) / 1024,
        "handles": len(list((folder / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "processes": len(list(children(pid))),
    }


def watch(launcher: subprocess.Popen[str], run: Path, *, minutes: float) -> None:
    """Write a sample of each rank every SAMPLE_S seconds for `minutes`; AssertionError if the run ends earlier."""
    pids = rank_pids(launcher)
    begun = time.monotonic()
    with (run / "samples.jsonl").open("w", encoding="utf-8", buffering=1) as log:
        while (hours := (time.monotonic() - begun) / 3600) < minutes / 60:
            assert launcher.poll() is None, f"the run ended; see {run.with_suffix('.out')}"
            for rank, pid in pids.items():
                log.write(json.dumps({"rank": rank, "hours": hours, "steps": logged_steps(run), **sample(pid)}) + "\n")
            time.sleep(SAMPLE_S)


def read_samples(run: Path) -> dict[int, list[Sample]]:
    """Return the samples that `watch` wrote, by rank."""
    samples: dict[int, list[Sample]] = {}
    for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        samples.setdefault(values.pop("rank"), []).append(values)
    return samples


def settled(samples: list[Sample]) -> list[Sample]:
    """Return the samples after the warm-up."""
    return [line for line in samples if line["hours"] >= WARM_UP_SHARE * samples[-1]["hours"]]


def line_through(samples: list[Sample], name: str) -> dict[str, float]:
    """Return the least-squares slope an hour, its standard error, both ends, and minimum and median of both halves."""
    hours, values = (np.array([line[key] for line in samples]) for key in ("hours", name))
    (slope, _), covariance = np.polyfit(hours, values, 1, cov=True)
    half = len(values) // 2
    return {
        "first": float(values[0]),
        "last": float(values[-1]),
        "least_in_first_half": float(values[:half].min()),
        "least_in_second_half": float(values[half:].min()),
        "median_of_first_half": float(np.median(values[:half])),
        "median_of_second_half": float(np.median(values[half:])),
        "slope_per_hour": float(slope),
        "standard_error": float(covariance[0, 0] ** 0.5),
    }


def is_flat(name: str, line: dict[str, float], *, hours: float) -> bool:
    """Return True if the least value did not rise from the first half of `hours` to the second; memory may a little."""
    allowed = FLAT_MB_PER_HOUR * hours / 2 if name == "memory_mb" else 0.0
    return line["least_in_second_half"] - line["least_in_first_half"] <= allowed


def judge(samples: dict[int, list[Sample]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return rank -> quantity -> its line (see `line_through`) and `flat`, True if it does not grow."""
    names = ("memory_mb", "handles", "threads", "processes")
    judged: dict[str, dict[str, dict[str, Any]]] = {}
    for rank, lines in sorted(samples.items()):
        kept = settled(lines)
        found = {name: line_through(kept, name) for name in names}
        hours = kept[-1]["hours"] - kept[0]["hours"]
        judged[f"rank {rank}"] = {
            name: {**line, "flat": is_flat(name, line, hours=hours)} for name, line in found.items()
        }
    return judged


def soak(run: Path, *, minutes: float) -> None:
    """Train into an emptied folder for `minutes`, and sample all ranks."""
    shutil.rmtree(run, ignore_errors=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    command = [*measure.torchrun(RANKS), "-m", "mocokit", "pretrain", "moco-v2-small", "--out", str(run), *FLAGS]
    with run.with_suffix(".out").open("w", encoding="utf-8") as printed:
        launcher = subprocess.Popen(
            command, stdout=printed, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        try:
            while logged_steps(run) < STEPS_PER_EPOCH:
                assert launcher.poll() is None, f"the run did not start; see {printed.name}"
                time.sleep(1)
            watch(launcher, run, minutes=minutes)
        finally:
            launcher.send_signal(signal.SIGTERM)
            launcher.wait(600)


def counts_of(run: Path, samples: list[Sample]) -> dict[str, int]:
    """Return the number of steps, saves and kNN evaluations of the run."""
    steps = logged_steps(run)
    kept = settled(samples)
    evaluations = (run / "metrics.jsonl").read_text(encoding="utf-8").count("knn_acc")
    return {
        "steps": steps,
        "steps_after_warm_up": int(kept[-1]["steps"] - kept[0]["steps"]),
        "saves": steps // STEPS_PER_EPOCH,
        "evaluations": evaluations,
    }


def main() -> None:
    """Run the soak, test its samples, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--judge", action="store_true", help="only evaluate the finished run in --out")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results" / "soak.json")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "reliability.md")
    args = parser.parse_args()
    if not args.judge:
        soak(args.out, minutes=args.minutes)
    samples = read_samples(args.out)
    ranks = judge(samples)
    counts = counts_of(args.out, samples[0])
    flat = all(line["flat"] for lines in ranks.values() for line in lines.values())
    result = {"minutes": args.minutes, "samples": len(samples[0]), **counts, "flat": flat, "ranks": ranks}
    measure.save(args.results, result)
    write_document(args.document, args.results.with_name("faults.json"))
    print(json.dumps(result))
    sys.exit(not flat)


if __name__ == "__main__":
    main()
