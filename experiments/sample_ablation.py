"""The columns of MoCo v2's ablation, in small: v1, + MLP, + aug+, + cos on the embedded sample, same budget, 3 seeds.

    python experiments/sample_ablation.py

Settings are the demo's but for the switches and the length. kNN bank: the sample's train part; queries: its test part,
which no choice was made on.
"""

import argparse
from pathlib import Path
from typing import Any

import measure

from mocokit.demo import SETTINGS, sample_path
from mocokit.settings import to_flags

COLUMNS = {
    "v1": ["--no-mlp", "--no-aug-plus", "--no-cos"],
    "+ MLP": ["--mlp", "--no-aug-plus", "--no-cos"],
    "+ aug+": ["--mlp", "--aug-plus", "--no-cos"],
    "+ cos": ["--mlp", "--aug-plus", "--cos"],
}


def main() -> None:
    """Train and judge each cell, and write the results as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/sample_ablation"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/sample_ablation.json"))
    args = parser.parse_args()
    milestones = [
        "--optim.milestones",
        str(args.epochs * 6 // 10),
        str(args.epochs * 8 // 10),
    ]  # 120 and 160 of 200, to scale
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in COLUMNS}
    for seed in args.seeds:
        for name, column in COLUMNS.items():
            out = args.out / f"{name.replace(' ', '')}_seed{seed}"
            shared = ["--data", str(sample_path("train")), "--seed", str(seed), "--epochs", str(args.epochs)]
            minutes = measure.train("moco-v2-small", [*shared, *to_flags(SETTINGS), *milestones, *column], out)
            accuracy = measure.judge(
                out, str(sample_path("train")), str(sample_path("test")), seed=seed, logistic=False
            )
            cells[name].append({"seed": seed, **minutes, "accuracy": accuracy})
            measure.save(args.results, {"epochs": args.epochs, "columns": COLUMNS, "cells": cells})
    for name, runs in cells.items():
        print(name, measure.table_of([run["accuracy"] for run in runs]), sep="\n")


if __name__ == "__main__":
    main()
