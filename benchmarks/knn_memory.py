"""Measure peak extra memory and time of weighted kNN at ImageNet's shape, in chunks and with a whole matrix.

Features are random. Extra memory is the memory that kNN needs beside the features. Each measurement runs in a process
of its own, because the peak of a process never falls.

    python benchmarks/knn_memory.py
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import measuring
import torch
import torch.nn.functional as F

from mocokit.evaluate.features import Features
from mocokit.evaluate.knn import PROTOCOLS, knn_accuracy
from mocokit.report.text_tables import markdown_columns

CPU = torch.device("cpu")
DIM = 2048
CLASSES = 1000
ROWS = 1_281_167  # ImageNet's train and val images
QUERIES = 50_000
CASES = {  # name: (way, bank rows, queries); the last two cases have all queries or the whole bank of ImageNet
    "whole matrix": ("whole", 128_117, 500),
    "chunks": ("chunks", 128_117, 500),
    "chunks, all queries": ("chunks", 12_812, QUERIES),
    "chunks, all of the bank": ("chunks", ROWS, 500),
}


def whole(bank: Features, queries: Features) -> None:
    """Run kNN as it is usually written: a normalised copy of the bank, and the whole matrix of similarities."""
    similarity = F.normalize(queries.rows.float(), dim=1) @ F.normalize(bank.rows.float(), dim=1).T
    similarity.topk(200, dim=1)


def chunks(bank: Features, queries: Features) -> None:
    """Run mocokit's kNN."""
    knn_accuracy(bank, queries, PROTOCOLS, device=CPU)


WAYS = {"whole": whole, "chunks": chunks}


def random_features(num_rows: int) -> Features:
    """Return random half-precision features, with which ImageNet's bank takes 5.2 GB.

    They are filled in place: temporary memory would raise the peak before kNN and hide kNN's own.
    """
    rows = torch.empty(num_rows, DIM, dtype=torch.float16)
    for part in rows.split(4096):
        part.copy_(torch.randn(part.shape))
    return Features(rows=rows, labels=torch.randint(CLASSES, (num_rows,)))


def measure_here(way: str, num_rows: int, num_queries: int) -> dict[str, float]:
    """Return the megabytes by which kNN raises this process's peak memory, and its seconds."""
    torch.manual_seed(0)
    bank = random_features(num_rows)
    queries = random_features(num_queries)
    few = Features(rows=bank.rows[:300], labels=bank.labels[:300])
    WAYS[way](few, Features(rows=queries.rows[:2], labels=queries.labels[:2]))  # load libraries before measuring
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    WAYS[way](bank, queries)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"extra_megabytes": (after - before) / 1024, "seconds": seconds}


def measure(case: str) -> dict[str, float]:
    """Return the result of `measure_here` in a fresh process."""
    command = [sys.executable, __file__, "--here", case]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def predict(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return a prediction for ImageNet's full shape.

    Memory is at most that of the last two cases together. Time is proportional to queries times bank rows.
    """
    queries = table["chunks, all queries"]
    bank = table["chunks, all of the bank"]
    return {
        "extra_megabytes_at_most": queries["extra_megabytes"] + bank["extra_megabytes"],
        "hours_on_this_machine": bank["seconds"] * QUERIES / 500 / 3600,
    }


def main() -> None:
    """Measure each case, print the table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--here", choices=CASES)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "knn_memory.json")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure_here(*CASES[args.here])))
        return
    table: dict[str, dict[str, float]] = {}
    rows = []
    for name, (_, num_rows, num_queries) in CASES.items():
        table[name] = measure(name)
        cells = f"{table[name]['extra_megabytes']:,.0f}", f"{table[name]['seconds']:.1f}"
        rows.append((name, f"{num_rows:,}", f"{num_queries:,}", *cells))
    print(markdown_columns(("way", "bank rows", "queries", "extra MB", "s"), rows))
    predicted = predict(table)
    print(
        f"\n{ROWS:,} x {QUERIES:,} x {DIM}, from these: at most {predicted['extra_megabytes_at_most']:,.0f} MB, "
        f"{predicted['hours_on_this_machine']:.1f} h on this machine"
    )
    measuring.save_result(args.results, {"dim": DIM, "measured": table, "predicted_for_imagenet": predicted})


if __name__ == "__main__":
    main()
