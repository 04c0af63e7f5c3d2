"""Train, resume and evaluate from every kind of image source under every start method; fill docs/platforms.md.

    python experiments/platform_matrix.py [--methods spawn] [--workers 0 2]

A cell trains a tiny network for 2 epochs, throws the last checkpoint away, resumes, and measures kNN accuracy with the
same number of workers. The resumed run must end with the same bits. A cell that can't be run holds the error's line.
The cells of a start method and a number of workers are run in one process, which sets the start method.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
import torch
from safetensors.torch import load_file
from source_kinds import write_sources

import mocokit
from mocokit.data.sources.open_source import ImageData, open_source
from mocokit.data.views import ImageReader
from mocokit.evaluate.baselines import build_extractors, view_of
from mocokit.evaluate.features import choose_images, extract_features
from mocokit.evaluate.knn import PROTOCOLS, knn_accuracy
from mocokit.report.text_tables import markdown_columns

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
PAGE = ROOT / "docs" / "platforms.md"
BEGIN = "<!-- written by experiments/platform_matrix.py: begin -->"
END = "<!-- end -->"
METHODS = ("fork", "forkserver", "spawn")
CPU = torch.device("cpu")

SETTINGS: dict[str, object] = {
    "data.image_size": 32,
    "data.global_batch_size": 16,
    "model.arch": "resnet10_w16",
    "model.stem": "imagenet",
    "model.dim": 16,
    "method.queue_size": 64,
    "method.bn_groups": 2,
    "optim.epochs": 2,
    "run.device": "cpu",
    "run.precision": "fp32",
    "run.knn_every": 0,
    "run.log_every": 1,
}
"""Changes to `moco-v2-small`: 4 steps in all, with a checkpoint in the middle."""


def try_cell(data: ImageData, workers: int, run: Path) -> dict[str, Any]:
    """Return the seconds and the accuracy of a cell, or the line in which it was refused."""
    start = time.perf_counter()
    try:
        mocokit.pretrain("moco-v2-small", data=data, out=run, settings={**SETTINGS, "data.workers": workers})
        weights = load_file(run / "backbone.safetensors")
        max((run / "checkpoints").glob("step_*.pt")).unlink()
        mocokit.resume(run, data=None if isinstance(data, str) else data)
        resumed = load_file(run / "backbone.safetensors")
        same = all(torch.equal(resumed[name], tensor) for name, tensor in weights.items())
        accuracy = measure_knn(run, data, workers)
    except (ValueError, OSError) as error:
        return {"refused": str(error)}
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "knn_percent": round(100 * accuracy, 2),
        "resumed_bits_equal": same,
        "losses": [row["loss"] for row in _metrics(run) if "loss" in row],
    }


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def measure_knn(run: Path, data: ImageData, workers: int) -> float:
    """Return the accuracy (0..1) of every second image, for which the others vote."""
    loaded = mocokit.load_backbone(run)
    images = choose_images(
        ImageReader(open_source(data), max_image_px=10**6, seed=0), view_of(loaded.card, num_workers=workers)
    )
    (extractor,) = build_extractors(loaded, baselines=False, device=CPU, seed=0)
    features = extract_features(extractor.embed, images, device=CPU)
    bank, queries = (
        replace(features, rows=features.rows[part::2], labels=features.labels[part::2]) for part in range(2)
    )
    return knn_accuracy(bank, queries, PROTOCOLS, device=CPU)[PROTOCOLS[0]]


def run_column(method: str, workers: int) -> None:
    """Run the cells of a start method and a number of workers, and save each as it ends."""
    multiprocessing.set_start_method(method)
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (kind, data) in enumerate(write_sources(Path(folder)).items()):
            cells[kind] = try_cell(data, workers, Path(folder) / f"run_{number}")
            print(method, workers, kind, cells[kind], flush=True)
    measure.save(_column_file(method, workers), {"method": method, "workers": workers, "cells": cells})


def _column_file(method: str, workers: int) -> Path:
    return RESULTS / f"platform_matrix_{method}_{workers}.json"


def write_page() -> None:
    """Put the table of all columns that were run into docs/platforms.md."""
    columns = [
        json.loads(_column_file(method, workers).read_text(encoding="utf-8"))
        for method in METHODS
        for workers in (0, 2)
        if _column_file(method, workers).exists()
    ]
    kinds = list(columns[0]["cells"])
    header = ["source", *(f"{column['method']}, {column['workers']} workers" for column in columns)]
    lines = [
        [kind, *(_describe(column["cells"][kind], columns[0]["cells"][kind]) for column in columns)] for kind in kinds
    ]
    machine = columns[0]["machine"]
    note = f"\nPython {machine['python']}, torch {machine['torch']}, {machine['platform']}.\n"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    text = f"{before}{BEGIN}\n{markdown_columns(header, lines, words=header)}{note}{END}{rest.partition(END)[2]}"
    PAGE.write_text(text, encoding="utf-8")


def _describe(cell: dict[str, Any], first: dict[str, Any]) -> str:
    """Return the text of a cell; `first` is the cell of the same source in the first column."""
    if "refused" in cell:
        return str(cell["refused"])
    faults = [] if cell["resumed_bits_equal"] else ["resumed to other bits"]
    if cell["losses"] != first.get("losses"):
        faults.append("other losses than the first column")
    return f"{'; '.join(faults) or 'equal'}, {cell['seconds']:.1f} s"


def main() -> None:
    """Run the columns, each in a process of its own, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 2])
    parser.add_argument("--column", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.column:
        run_column(arguments.column[0], int(arguments.column[1]))
        return
    for method in arguments.methods:
        for workers in arguments.workers:
            one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # roundings depend on the number
            command = [sys.executable, __file__, "--column", method, str(workers)]
            subprocess.run(command, env=one_thread, check=True)
    write_page()


if __name__ == "__main__":
    main()
