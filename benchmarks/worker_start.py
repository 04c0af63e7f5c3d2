"""Print how long loader workers take to start under a start method, and how much memory each has of its own.

    python benchmarks/worker_start.py fork|forkserver|spawn [--workers 2] [--no-preload]

Linux only: memory comes from /proc.
"""

import argparse
import multiprocessing
import time
from pathlib import Path

from mocokit.data.augment.recipes import AUG_PLUS
from mocokit.data.loading.loader import build_loader
from mocokit.data.sources.open_source import open_source
from mocokit.data.views import ImageReader, TwoViews
from mocokit.run.demo import sample_path


def private_mb(pid: int) -> int:
    """Return the memory of a process that no other one shares, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) // 1024


def main() -> None:
    """Start two loaders, one after the other, and print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=["fork", "forkserver", "spawn"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-preload", action="store_true", help="forkserver: leave the server empty")
    arguments = parser.parse_args()
    multiprocessing.set_start_method(arguments.method)
    if arguments.no_preload:  # a server that runs already is not changed
        multiprocessing.set_forkserver_preload([])
        process = multiprocessing.Process(target=time.sleep, args=(0,))
        process.start()
        process.join()
    source = open_source(sample_path("val"))
    reader = ImageReader(source, max_image_px=10**6, seed=0)
    views = TwoViews(reader, AUG_PLUS, size_px=32, seed=0, pipeline="fast")
    order = [[(0, (8 * step + row) % len(source)) for row in range(8)] for step in range(400)]
    for name in ("first", "next"):
        start = time.perf_counter()
        batches = iter(build_loader(views, order, num_workers=arguments.workers))
        for _ in range(2 * arguments.workers):
            next(batches)
        seconds = time.perf_counter() - start
        memory = [private_mb(worker.pid or 0) for worker in multiprocessing.active_children()]
        print(f"{arguments.method}, {name} loader: {seconds:.2f} s, MB of each worker's own: {memory}")
        del batches


if __name__ == "__main__":
    main()
