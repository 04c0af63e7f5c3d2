"""Fashion-MNIST: evaluate one pre-trained run by every protocol, beside random weights and raw pixels.

    python experiments/fashion_mnist_transfer.py --data DIR --run runs/fashion_mnist/seed0

DIR holds the four IDX files (Debian's package dataset-fashion-mnist). If the run folder does not exist, the run is
trained first with the settings of fashion_mnist.py. Each cell (protocol, features, seed) is saved at once and never
repeated, so the script may be called several times. A slow protocol can be run on fewer images or with a shorter
schedule; the cell records both. Seeds draw the subsets of labels, the crops, the order, the classifier's first weights
and the random-init network. There is only one pre-trained run.
"""

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measure
from fashion_mnist import FLAGS

from mocokit.engine.backbone_file import load_backbone
from mocokit.engine.precision import Precision
from mocokit.evaluate.baselines import Subject, subjects_of, view_of
from mocokit.evaluate.evaluation import ALL, Exam, applies, examine, lacks_labels
from mocokit.evaluate.feature_cache import FeatureCache
from mocokit.evaluate.results import COLUMNS
from mocokit.evaluate.splits import balanced_subset, open_train_and_test

Cell = dict[str, Any]


def build_exam(args: argparse.Namespace, run: Path, seed: int) -> tuple[Exam, list[Subject]]:
    """Return the images and the features to evaluate, for one seed."""
    loaded = load_backbone(run)
    train, test = (str(next(args.data.glob(f"{part}-images-idx3-ubyte*"))) for part in ("train", "t10k"))
    images = open_train_and_test(train, test, view_of(loaded.card, num_workers=args.workers), seed=seed)
    parts = [
        part if count >= len(part.indices) else part.only(balanced_subset(part, count, seed=0))
        for part, count in zip(images, (args.train_images, args.test_images), strict=True)
    ]
    exam = Exam(
        train=parts[0],
        test=parts[1],
        device=measure.CPU,
        precision=Precision("fp32", measure.CPU),
        seed=seed,
        cache=FeatureCache(run / "features"),
        epochs_scale=args.epochs_scale,
        say=lambda text: print(f"  {text}", flush=True),
    )
    return exam, subjects_of(loaded, baselines=True, device=measure.CPU, seed=seed)


GIVEN = ("train_images", "test_images", "epochs_scale")
"""A cell's number of images and length of schedule."""
IDENTITY = ("asked", "features", "seed", *GIVEN)
"""Fields that identify a cell."""


def run_cell(asked: Cell, subject: Subject, exam: Exam) -> list[Cell]:
    """Return the results of one protocol for one kind of features and one seed."""
    return [{**asked, **asdict(score)} for score in examine(asked["asked"], subject, exam)]


def table_of(cells: list[Cell]) -> str:
    """Return a Markdown table: one row a protocol, one column a kind of features, and the mean minutes of a cell."""
    lines = [f"| protocol | labels | {' | '.join(COLUMNS)} | minutes |", "|---" * (len(COLUMNS) + 3) + "|"]
    for protocol, labels in dict.fromkeys((cell["protocol"], cell["labels"]) for cell in cells):
        own = [cell for cell in cells if (cell["protocol"], cell["labels"]) == (protocol, labels)]
        by_name = [[100 * cell["accuracy"] for cell in own if cell["features"] == name] for name in COLUMNS]
        columns = [measure.mean_and_spread(values) if values else "-" for values in by_name]
        minutes = sum(cell["seconds"] for cell in own) / 60 / len(own)
        lines.append(f"| {protocol} | {labels:,} | {' | '.join(columns)} | {minutes:.1f} |")
    return "\n".join(lines)


def compare_linear(cells: list[Cell]) -> dict[str, dict[str, float]]:
    """Return the time of the official linear protocol over that of the fast one, and the difference in accuracy.

    There is one entry for each number of images and length of schedule that both were run with.
    """
    found: dict[str, dict[str, float]] = {}
    for given in dict.fromkeys(tuple(cell[name] for name in GIVEN) for cell in cells):
        own = [cell for cell in cells if tuple(cell[name] for name in GIVEN) == given]
        trained = [cell for cell in own if cell["features"] == "pre-trained"]
        official = [cell for cell in trained if cell["asked"] == "linear/moco" and "best" not in cell["protocol"]]
        fast = [cell for cell in trained if cell["asked"] == "linear/fast"]
        if official and fast:
            found["train_images={}, test_images={}, epochs_scale={}".format(*given)] = {
                "official_over_fast_time": _mean(official, "seconds") / _mean(fast, "seconds"),
                "fast_minus_official_points": 100 * (_mean(fast, "accuracy") - _mean(official, "accuracy")),
            }
    return found


def _mean(cells: list[Cell], key: str) -> float:
    return statistics.fmean(float(cell[key]) for cell in cells)


def main() -> None:
    """Run the missing cells, save each, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/fashion_mnist/seed0"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--protocols", nargs="+", default=list(ALL))
    parser.add_argument("--epochs-scale", type=float, default=1.0)
    parser.add_argument("--train-images", type=int, default=60_000)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pretrain-epochs", type=int, default=10)
    parser.add_argument("--results", type=Path, default=Path("experiments/results/fashion_mnist_transfer.json"))
    args = parser.parse_args()
    if not (args.run / "backbone.safetensors").exists():
        train = str(next(args.data.glob("train-images-idx3-ubyte*")))
        flags = [*FLAGS, "--data", train, "--seed", "0", "--epochs", str(args.pretrain_epochs)]
        measure.train("moco-v2-small", flags, args.run)
    settings = {name: getattr(args, name) for name in GIVEN}
    cells: list[Cell] = []
    if args.results.exists():
        cells = json.loads(args.results.read_text(encoding="utf-8"))["cells"]
    done = {tuple(cell[name] for name in IDENTITY) for cell in cells}
    for seed in args.seeds:
        exam, subjects = build_exam(args, args.run, seed)
        for protocol in args.protocols:
            for subject in subjects:
                allowed = applies(protocol, subject) and not lacks_labels(protocol, exam.train)
                asked = {"asked": protocol, "features": subject.name, "seed": seed, **settings}
                if tuple(asked[name] for name in IDENTITY) in done or not allowed:
                    continue
                print(f"seed {seed}: {protocol} of {subject.name}", flush=True)
                cells += run_cell(asked, subject, exam)
                print(f"  {100 * cells[-1]['accuracy']:.2f} in {cells[-1]['seconds']:.0f} s", flush=True)
                measure.save(args.results, {"linear": compare_linear(cells), "cells": cells})
    print(table_of(cells), json.dumps(compare_linear(cells), indent=1), sep="\n\n")


if __name__ == "__main__":
    main()
