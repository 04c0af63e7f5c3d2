"""Measure peak extra memory and time of the loss, forward and backward, in chunks and with whole (N, K) scores.

Each measurement runs in a process of its own, because the peak of a process never falls.

    python benchmarks/loss_memory.py
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
from torch import Tensor

from mocokit.losses import info_nce
from mocokit.report.text_tables import markdown_columns

DIM = 128
TEMPERATURE = 0.2


def whole_scores(q: Tensor, k: Tensor, negatives: Tensor) -> Tensor:
    """Return the loss as it is usually written, with all scores in one tensor."""
    logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ negatives.T], dim=1) / TEMPERATURE  # (N, 1+K)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def chunks(q: Tensor, k: Tensor, negatives: Tensor) -> Tensor:
    """Return mocokit's loss, which goes through the negatives in chunks."""
    return info_nce(q, k, negatives, temperature=TEMPERATURE).row_losses.mean()


WAYS = {"whole scores": whole_scores, "chunks": chunks}


def measure_here(way: str, batch: int, queue_size: int) -> dict[str, float]:
    """Return the megabytes by which forward and backward raise this process's peak, and the seconds of a repeat."""
    torch.manual_seed(0)
    q, k, negatives = (torch.randn(rows, DIM) for rows in (batch, batch, queue_size))
    for tensor in (q, k, negatives):  # in place: temporary memory here would raise the peak and hide that of the loss
        tensor.div_(tensor.norm(dim=1, keepdim=True))
    q.requires_grad_()
    WAYS[way](q[:2], k[:2], negatives[:64]).backward()  # load libraries before measuring
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    WAYS[way](q, k, negatives).backward()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    WAYS[way](q, k, negatives).backward()
    return {"extra_megabytes": (after - before) / 1024, "seconds": time.perf_counter() - start}


def measure(way: str, batch: int, queue_size: int) -> dict[str, float]:
    """Return the result of `measure_here` in a fresh process."""
    command = [sys.executable, __file__, "--here", way, str(batch), str(queue_size)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def main() -> None:
    """Measure both ways over K, print the table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--here", nargs=3, metavar=("WAY", "N", "K"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "loss_memory.json")
    args = parser.parse_args()
    if args.here:
        way, batch, queue_size = args.here
        print(json.dumps(measure_here(way, int(batch), int(queue_size))))
        return
    table = {
        str(queue_size): {way: measure(way, args.batch, queue_size) for way in WAYS}
        for queue_size in (4096, 65536, 262144, 1048576)
    }
    rows = [
        (
            f"{int(size):,}",
            *(
                f"{row[way][key]:.0f}" if key[0] == "e" else f"{row[way][key]:.2f}"
                for way in WAYS
                for key in ("extra_megabytes", "seconds")
            ),
        )
        for size, row in table.items()
    ]
    header = ("K", *(f"{way}: {unit}" for way in WAYS for unit in ("extra MB", "s")))
    print(markdown_columns(header, rows))
    measuring.save_result(args.results, {"batch": args.batch, "dim": DIM, "by_queue_size": table})


if __name__ == "__main__":
    main()
