"""The same seed on 1, 2 and 4 ranks and at other micro-batch sizes: how far are the losses apart after 20 real steps?

python experiments/rank_equality.py
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import measure

from mocokit.demo import sample_path

FLAGS = [
    *("--data", str(sample_path("train")), "--epochs", "1", "--global-batch-size", "112", "--bn-groups", "4"),
    *("--arch", "resnet10_w32", "--model.stem", "imagenet", "--image-size", "32", "--method.queue-size", "1000"),
    *("--device", "cpu", "--workers", "1", "--run.log-every", "1", "--run.knn-every", "0"),
]
CASES = {  # name: (ranks, BatchNorm groups that go through the network at once)
    "1 rank": (1, 0),
    "2 ranks": (2, 0),
    "4 ranks": (4, 0),
    "1 rank, micro-batches of 1 group": (1, 1),
    "1 rank, micro-batches of 3 groups": (1, 3),
    "2 ranks, micro-batches of 1 group": (2, 1),
}


def losses_of(out: Path, precision: str, ranks: int, micro_groups: int) -> list[float]:
    """Loss of each step of one run."""
    shutil.rmtree(out, ignore_errors=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "mocokit", "pretrain", "moco-v2-small", "--out", str(out), *FLAGS]
    command += ["--precision", precision, "--method.micro-groups", str(micro_groups)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def main() -> None:
    """Run each case in float64 and float32 and write the largest relative difference to one rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/rank_equality"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/rank_equality.json"))
    args = parser.parse_args()
    differences: dict[str, dict[str, float]] = {}
    for precision in ("fp64", "fp32"):
        runs = {name: losses_of(args.out / precision, precision, *case) for name, case in CASES.items()}
        reference = runs["1 rank"]
        assert len(reference) == 20
        differences[precision] = {
            name: max(abs(a - b) / b for a, b in zip(losses, reference, strict=True)) for name, losses in runs.items()
        }
        print(precision, differences[precision], flush=True)
    measure.save(args.results, {"steps": 20, "flags": FLAGS[2:], "largest_relative_difference": differences})


if __name__ == "__main__":
    main()
