"""Measure which variant reaches MoCo v2's kNN accuracy in the fewest CPU minutes, on the embedded sample, 3 seeds.

    python experiments/small_budget.py

Each variant is the demo's run with one change and the same number of epochs. The clock is the CPU time of the training
process, including start-up and the kNN monitor, so other work on the machine does not count. It is read whenever the
monitor logs an accuracy. The monitor uses the sample's val part. The last columns are of its test part, on which
nothing was chosen.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measure

from mocokit.config.toml import to_flags
from mocokit.report.text_tables import markdown_columns
from mocokit.run.demo import SETTINGS, sample_path

BASELINE = "MoCo v2"
VARIANTS: dict[str, list[str]] = {
    BASELINE: [],
    "decoupled (DCL)": ["--method.decoupled"],
    "hard negatives, beta 0.5": ["--method.hardness", "0.5"],
    "growing views, 24 to 48 px": ["--data.first-image-size", "24"],
    "patches, 6 queries a view": ["--method.patch-grid", "2"],
    "symmetric": ["--method.symmetric"],
    "multi-crop, 2 of 24 px": ["--augment.local-crops", "2", "--augment.local-size", "24"],
}


def arguments(name: str, *, epochs: int, every: int, seed: int, out: Path) -> list[str]:
    """Return the arguments of `mocokit` for one run."""
    settings = {**SETTINGS, "run.knn_every": every, "data.test": str(sample_path("val"))}
    shared = ["--data", str(sample_path("train")), "--seed", str(seed), "--epochs", str(epochs), "--out", str(out)]
    return ["pretrain", "moco-v2-small", *to_flags(settings), *VARIANTS[name], *shared]


def train(command: list[str], out: Path) -> list[dict[str, float]]:
    """Run `mocokit` into an emptied folder; return step, kNN accuracy (%) and CPU minutes at each monitor line."""
    shutil.rmtree(out, ignore_errors=True)
    print("mocokit", *command, flush=True)
    process = subprocess.Popen([sys.executable, "-m", "mocokit", *command], stderr=subprocess.DEVNULL)
    curve: list[dict[str, float]] = []
    while True:
        ended = process.poll() is not None
        logged = _monitor_lines(out / "metrics.jsonl")
        for line in logged[len(curve) :]:
            minutes = _cpu_minutes(process.pid) if not ended else curve[-1]["minutes"]
            curve.append({"step": line["step"], "knn": 100 * line["knn_acc"], "minutes": minutes})
        if ended:
            break
        time.sleep(0.1)
    assert process.returncode == 0, f"ended with {process.returncode}"
    return curve


def _monitor_lines(log: Path) -> list[dict[str, float]]:
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line for line in whole if "knn_acc" in line]


def _cpu_minutes(pid: int) -> float:
    """Return the user and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") / 60


def mean_curve(runs: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return (CPU minutes, kNN accuracy) at each monitor line, means over seeds."""
    points = zip(*(run["curve"] for run in runs), strict=True)
    return [
        (statistics.fmean(one["minutes"] for one in same), statistics.fmean(one["knn"] for one in same))
        for same in points
    ]


def minutes_to(curve: list[tuple[float, float]], wanted: float) -> float | None:
    """Return the CPU minutes at which a curve, straight between its points, first reaches an accuracy; None: never."""
    if curve[0][1] >= wanted:
        return curve[0][0]
    for (start, low), (end, high) in itertools.pairwise(curve):
        if low < wanted <= high:
            return start + (end - start) * (wanted - low) / (high - low)
    return None


def table_of(cells: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table: one row a variant."""
    curves = {name: mean_curve(runs) for name, runs in cells.items() if runs}
    wanted = curves[BASELINE][-1][1]
    protocols = list(cells[BASELINE][0]["test"])
    header = ["variant", "seeds", "CPU minutes", f"until {wanted:.1f} % on val", "val kNN", *protocols]
    lines = list[list[str]]()
    for name, curve in curves.items():
        runs = cells[name]
        reached = minutes_to(curve, wanted)
        row = [name, str(len(runs)), f"{curve[-1][0]:.1f}", "not reached" if reached is None else f"{reached:.1f}"]
        row.append(measure.mean_and_spread([run["curve"][-1]["knn"] for run in runs]))
        row += [measure.mean_and_spread([run["test"][protocol] for run in runs]) for protocol in protocols]
        lines.append(row)
    return markdown_columns(header, lines)


def main() -> None:
    """Train the runs that the results lack, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--knn-every", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("runs/small_budget"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/small_budget.json"))
    args = parser.parse_args()
    settings = {"epochs": args.epochs, "knn_every": args.knn_every, "variants": VARIANTS}
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    if args.results.exists():
        earlier = json.loads(args.results.read_text(encoding="utf-8"))
        assert earlier["settings"] == settings, f"{args.results} was made with other settings; move it away"
        cells |= earlier["cells"]
    bank = str(sample_path("train"))
    test = str(sample_path("test"))
    for seed in args.seeds:
        for name in args.only:
            if any(run["seed"] == seed for run in cells[name]):
                continue
            out = args.out / f"{name.partition(',')[0].replace(' ', '_')}_seed{seed}"
            curve = train(arguments(name, epochs=args.epochs, every=args.knn_every, seed=seed, out=out), out)
            accuracy = measure.evaluate(out, bank, test, seed=seed, logistic=False)["pre-trained"]
            cells[name].append({"seed": seed, "curve": curve, "test": accuracy})
            measure.save(args.results, {"settings": settings, "cells": cells})
    print(table_of(cells))


if __name__ == "__main__":
    main()
