"""Time the paper's run on one GPU: ResNet-50 at 224 px, bf16, batch 256 in 8 BatchNorm groups, K 65536.

    python benchmarks/gpu.py

Takes under 10 minutes. Measures the step on a batch that is already on the device, the loader alone on real JPEG files,
and both together, with and without torch.compile, with color and blur on the CPU or the GPU. Computes the hours of 200
epochs of ImageNet. Then runs the tests that need a GPU.
"""

import argparse
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measuring
import photographs
import torch

from mocokit.config.presets import get_preset
from mocokit.config.toml import replace_settings
from mocokit.plan.bench import BenchResult, bench
from mocokit.report.text_tables import markdown_columns

TARGET_IMAGES_PER_S = 2200
TARGET_FED_SHARE = 0.9
WAYS: dict[str, dict[str, object]] = {
    "compiled, views by the CPU": {"run.compile": "on", "augment.on": "cpu"},
    "compiled, color and blur by the GPU": {"run.compile": "on", "augment.on": "device"},
    "eager, views by the CPU": {"run.compile": "off", "augment.on": "cpu"},
}
IMAGENET_IMAGES = 1_281_167
EPOCHS = 200


def measure(folder: Path, settings: dict[str, object], *, batch: int, seconds: float) -> BenchResult:
    """Return the bench result with these settings."""
    fixed = {
        "data.source": str(folder),
        "data.global_batch_size": batch,
        "run.precision": "bf16",
        "run.device": "cuda",
        "run.knn_every": 0,
    }
    return bench(replace_settings(get_preset("moco-v2"), {**fixed, **settings}), seconds=seconds)


def row_of(name: str, result: BenchResult) -> tuple[str, ...]:
    """Return a row of the table."""
    step = sum(result.step_ms.values())
    hours = IMAGENET_IMAGES * EPOCHS / result.images_per_s / 3600
    return (
        name,
        f"{result.step_images_per_s:,.0f}",
        f"{result.loader_images_per_s:,.0f}",
        f"{result.images_per_s:,.0f}",
        f"{result.images_per_s / result.step_images_per_s:.0%}",
        f"{result.step_ms['momentum update and keys'] / step:.0%}",
        f"{result.loss_ms / step:.0%}",
        f"{hours:.1f}",
    )


def main() -> None:
    """Measure, print and write JSON; exit with code 1 if a target is missed or a test fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=WAYS, help="measure only these, and run no tests")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: torch sees no GPU here")
    folder = args.work / f"500x375x{args.images}"
    photographs.make_folder(folder, count=args.images, width=500, height=375)
    runs: dict[str, BenchResult] = {}
    for name in args.only or WAYS:
        runs[name] = measure(folder, WAYS[name], batch=args.batch, seconds=args.seconds)
        print(
            *row_of(name, runs[name]), sep=" | ", flush=True
        )  # at once, in case a compilation takes too long for the time on the machine
    header = (
        "",
        "step alone, img/s",
        "loader alone",
        "fed from JPEGs",
        "of the step",
        "keys' share",
        "loss's share",
        "hours for 200 epochs of ImageNet",
    )
    print(torch.cuda.get_device_name(), "\n")
    print(markdown_columns(header, [row_of(name, result) for name, result in runs.items()]))
    tests = None if args.only else subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu"], check=False).returncode
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "runs": {name: asdict(run) for name, run in runs.items()},
        "gpu_tests_exit_code": tests,
    }
    measuring.save_result(args.results, result)
    best = max(runs.values(), key=lambda run: run.images_per_s)
    reached = best.step_images_per_s >= TARGET_IMAGES_PER_S
    fed = best.images_per_s >= TARGET_FED_SHARE * best.step_images_per_s
    print(
        f"step at least {TARGET_IMAGES_PER_S} img/s: {'yes' if reached else 'NO'}; "
        f"fed to {TARGET_FED_SHARE:.0%}: {'yes' if fed else 'NO'}"
    )
    sys.exit(0 if reached and fed and not tests else 1)


if __name__ == "__main__":
    main()
