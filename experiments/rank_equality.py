"""Measure how far losses differ over 60 real steps between 1, 2 and 4 ranks and between sizes of micro-batches.

python experiments/rank_equality.py

All runs have the same seed. The script also counts the bytes that a step sends (rank_traffic.py) and compares them with
the least possible. With --timing it also reports images per second; the machine must be idle then.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import measure

from mocokit.run.demo import sample_path

STEPS = 60
BATCH = 112
DIM = 128
FLAGS = [
    *("--data", str(sample_path("train")), "--epochs", "3", "--global-batch-size", str(BATCH), "--bn-groups", "4"),
    *("--arch", "resnet10_w32", "--model.stem", "imagenet", "--image-size", "32", "--method.queue-size", "1000"),
    *("--device", "cpu", "--workers", "1", "--run.log-every", "1", "--run.knn-every", "0"),
    *("--model.dim", str(DIM), "--run.rank-timeout-s", "3600"),
]
CASES = {  # name: (ranks, BatchNorm groups a micro-batch; 0: all)
    "1 rank": (1, 0),
    "2 ranks": (2, 0),
    "4 ranks": (4, 0),
    "1 rank, micro-batches of 1 group": (1, 1),
    "1 rank, micro-batches of 3 groups": (1, 3),
    "2 ranks, micro-batches of 1 group": (2, 1),
}
Lines = list[dict[str, float]]


def train(out: Path, command: list[str]) -> Lines:
    """Run a command that trains into `out`, and return the logged line of each step."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "loss" in line]


def train_case(out: Path, precision: str, ranks: int, micro_groups: int) -> Lines:
    """Train one of CASES and return the logged line of each step."""
    command = [*measure.torchrun(ranks), "-m", "mocokit", "pretrain", "moco-v2-small", "--out", str(out), *FLAGS]
    lines = train(out, [*command, "--precision", precision, "--method.micro-groups", str(micro_groups)])
    assert len(lines) == STEPS
    return lines


def drift(runs: dict[str, Lines]) -> dict[str, float]:
    """Return for each run the largest relative difference of a loss to that of one rank."""
    return {
        name: max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(lines, runs["1 rank"], strict=True))
        for name, lines in runs.items()
    }


def traffic(out: Path, ranks: int) -> dict[str, Any]:
    """Return the bytes of a step of one rank.

    They are: the bytes given to each kind of collective, the bytes that ring algorithms send for these, the bytes
    counted on the loopback device (None without a network namespace), and the least that must be sent.
    """
    program = [*measure.torchrun(ranks), str(Path(__file__).with_name("rank_traffic.py")), str(out), "pretrain"]
    command = [*program, "moco-v2-small", "--out", str(out / "run"), *FLAGS, "--epochs", "1", "--precision", "fp32"]
    out.mkdir(parents=True, exist_ok=True)
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    may = subprocess.run([*alone, "true"], capture_output=True, check=False).returncode == 0
    train(out / "run", [*(alone if may else []), *command])
    steps = [json.loads((out / f"rank_{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]
    given = {name: statistics.median(step.get(name, 0) for step in steps[0]) for name in sorted(steps[0][5])}
    wire = given.pop("wire of all ranks") / ranks
    share = (ranks - 1) / ranks
    # Sends of a ring, as a multiple of what each rank gives: all_reduce passes (ranks - 1) / ranks of it twice.
    times_sent = {"all_reduce": 2 * share, "all_gather": ranks - 1, "all_to_all_single": share}
    sent = sum(size * times_sent.get(name.split(" ")[0], 0) for name, size in given.items())
    gradients = given["all_reduce float32"]
    least = {"gradients": 2 * share * gradients, "keys": share * BATCH * DIM * 4}
    return {
        "given": given,
        "sent_by_a_ring": sent,
        "least": least,
        "over_least": sent / sum(least.values()),
        "sent_over_the_wire": wire if may else None,
    }


def main() -> None:
    """Run each case in float64 and float32 and save the largest relative difference to one rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/rank_equality"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/rank_equality.json"))
    parser.add_argument("--timing", action="store_true", help="images per second too; the machine must be idle")
    args = parser.parse_args()
    result: dict[str, Any] = {"steps": STEPS, "flags": FLAGS[2:]}
    result["bytes_of_a_step"] = {f"{ranks} ranks": traffic(args.out / f"traffic_{ranks}", ranks) for ranks in (2, 4)}
    print(json.dumps(result["bytes_of_a_step"]), flush=True)
    result["largest_relative_difference"] = {}
    for precision in ("fp64", "fp32"):
        runs = {name: train_case(args.out / precision / name, precision, *case) for name, case in CASES.items()}
        result["largest_relative_difference"][precision] = drift(runs)
        print(precision, drift(runs), flush=True)
        if args.timing:
            speed = {name: statistics.median(line["images_per_s"] for line in runs[name][10:]) for name in runs}
            result.setdefault("images_per_s", {})[precision] = speed
            print("images/s", speed, flush=True)
    assert max(result["largest_relative_difference"]["fp64"].values()) < 1e-9
    measure.save(args.results, result)


if __name__ == "__main__":
    main()
