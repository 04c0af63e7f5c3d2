"""Peak extra memory and time of weighted kNN at ImageNet's shape: chunks against a whole matrix of similarities.

Features are random; their own memory is not counted, what kNN needs on top of it is. Each measurement is a process of
its own, since a process's peak never falls.

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
CASES = {  # name: (way, bank rows, queries); each of the last two has one side of ImageNet whole
    "whole matrix": ("whole", 128_117, 500),
    "chunks": ("chunks", 128_117, 500),
    "chunks, all queries": ("chunks", 12_812, QUERIES),
    "chunks, all of the bank": ("chunks", ROWS, 500),
}


def whole(bank: Features, queries: Features) -> None:
    """As it is usually written: a normalised copy of the bank and all similarities."""
    similarity = F.normalize(queries.rows.float(), dim=1) @ F.normalize(bank.rows.float(), dim=1).T
    similarity.topk(200, dim=1)


def chunks(bank: Features, queries: Features) -> None:
    """mocokit's."""
    knn_accuracy(bank, queries, PROTOCOLS, device=CPU)


WAYS = {"whole": whole, "chunks": chunks}


def random_features(num_rows: int) -> Features:
    """Half-precision rows, so that ImageNet's bank takes 5.2 GB; made in place, so that no peak of before hides one."""
    rows = torch.empty(num_rows, DIM, dtype=torch.float16)
    for part in rows.split(4096):
        part.copy_(torch.randn(part.shape))
    return Features(rows=rows, labels=torch.randint(CLASSES, (num_rows,)))


def measure_here(way: str, num_rows: int, num_queries: int) -> dict[str, float]:
    """Megabytes by which kNN raises this process's peak, and its seconds."""
    torch.manual_seed(0)
    bank = random_features(num_rows)
    queries = random_features(num_queries)
    few = Features(rows=bank.rows[:300], labels=bank.labels[:300])
    WAYS[way](few, Features(rows=queries.rows[:2], labels=queries.labels[:2]))  # libraries load
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    WAYS[way](bank, queries)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"extra_megabytes": (after - before) / 1024, "seconds": seconds}


def measure(case: str) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--here", case]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def predict(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """At ImageNet's full shape: no more memory than both sides' cases together, time as queries times bank rows."""
    queries = table["chunks, all queries"]
    bank = table["chunks, all of the bank"]
    return {
        "extra_megabytes_at_most": queries["extra_megabytes"] + bank["extra_megabytes"],
        "hours_on_this_machine": bank["seconds"] * QUERIES / 500 / 3600,
    }


def main() -> None:
    """Measure each case and write JSON."""
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
