"""Functions that the experiments share: train with the command line, evaluate frozen features, write results."""

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mocokit.data.sources.open_source import open_source
from mocokit.data.views import ImageReader
from mocokit.engine.backbone_file import load_backbone
from mocokit.engine.machine import describe_machine
from mocokit.evaluate.baselines import build_extractors, view_of
from mocokit.evaluate.features import choose_images, extract_features
from mocokit.evaluate.knn import PROTOCOLS, knn_accuracy

CPU = torch.device("cpu")


def torchrun(ranks: int) -> list[str]:
    """Return the start of a command line that runs a program on `ranks` ranks; plain Python for one."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, *(launcher if ranks > 1 else [])]


def train(preset: str, flags: list[str], out: Path) -> dict[str, float]:
    """Run `mocokit pretrain` into an emptied folder, and return its minutes of wall-clock time and of CPU time.

    Both include start-up and the kNN monitor. CPU time is user and system time of all cores.
    """
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "mocokit", "pretrain", preset, "--out", str(out), *flags]
    print("mocokit", *command[3:], flush=True)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    core_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_minutes": (time.perf_counter() - start) / 60, "core_minutes": core_s / 60}


def evaluate(run: Path, bank: str, test: str, *, seed: int, logistic: bool) -> dict[str, dict[str, float]]:
    """Return the accuracy in percent: features (raw pixels, random init, pre-trained) -> protocol -> accuracy."""
    loaded = load_backbone(run)
    view = view_of(loaded.card, num_workers=0)
    images = [choose_images(ImageReader(open_source(data), max_image_px=10**8, seed=0), view) for data in (bank, test)]
    table: dict[str, dict[str, float]] = {}
    for extractor in build_extractors(loaded, baselines=True, device=CPU, seed=seed):
        name = extractor.name
        train_features, test_features = (extract_features(extractor.embed, part, device=CPU) for part in images)
        knn = knn_accuracy(train_features, test_features, PROTOCOLS, device=CPU)
        table[name] = {f"kNN {protocol}": 100 * accuracy for protocol, accuracy in knn.items()}
        if logistic:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=100, tol=1e-3))
            model.fit(train_features.rows.numpy(), train_features.labels.numpy())
            accuracy = model.score(test_features.rows.numpy(), test_features.labels.numpy())
            table[name]["logistic regression"] = 100 * float(accuracy)
        print(name, {protocol: round(value, 2) for protocol, value in table[name].items()}, flush=True)
    return table


def save(path: Path, result: dict[str, Any]) -> None:
    """Write `result` and a description of the machine as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": describe_machine(), **result}, indent=1) + "\n", encoding="utf-8")


def mean_and_spread(values: list[float]) -> str:
    """Return `81.2 +- 0.3`, mean and sample standard deviation; only the number for one value."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return f"{tensor.mean():.1f} +- {tensor.std():.1f}" if len(values) > 1 else f"{tensor.mean():.1f}"


def table_of(runs: list[dict[str, dict[str, float]]]) -> str:
    """Return a Markdown table: one row a kind of features, one column a protocol, mean and deviation over runs."""
    protocols = list(next(iter(runs[0].values())))
    lines = ["| features | " + " | ".join(protocols) + " |", "|" + "---|" * (len(protocols) + 1)]
    for name in runs[0]:
        cells = [mean_and_spread([run[name][protocol] for run in runs]) for protocol in protocols]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
