"""Measure speed over workers, image size, batch and queue size: `mocokit bench` with one of them changed at a time.

python benchmarks/curves.py
"""

import argparse
from pathlib import Path
from typing import Any

import measuring
import photographs

from mocokit.config.presets import get_preset
from mocokit.config.toml import replace_settings
from mocokit.plan.bench import bench
from mocokit.report.text_tables import markdown_columns

BASE: dict[str, object] = {
    "data.image_size": 64,
    "data.global_batch_size": 64,
    "data.workers": -1,
    "model.arch": "resnet18",
    "method.queue_size": 65536,
    "method.bn_groups": 2,
    "run.precision": "auto",
    "run.knn_every": 0,
}
CURVES: dict[str, tuple[object, ...]] = {
    "data.workers": (0, 1, 2),
    "data.image_size": (64, 128, 224, 320, 448),
    "data.global_batch_size": (16, 64, 256),
    "method.queue_size": (1024, 65536, 262144, 1048576),
}


def measure(folder: Path, setting: str, value: object, *, seconds: float) -> dict[str, Any]:
    """Measure one point of a curve; from 224 px on, the batch is 16."""
    changes = {**BASE, "data.source": str(folder), setting: value}
    if setting == "data.image_size" and isinstance(value, int) and value >= 224:
        changes["data.global_batch_size"] = 16
    result = bench(replace_settings(get_preset("moco-v2"), changes), seconds=seconds)
    return {
        "value": value,
        "batch": result.global_batch_size,
        "pixels_ms": sum(result.pixels_ms.values()),
        "loader": result.loader_images_per_s,
        "step": result.step_images_per_s,
        "run": result.images_per_s,
        "loss_share": result.loss_ms / sum(result.step_ms.values()),
        "waiting": result.data_wait_share,
    }


def main() -> None:
    """Measure every curve, print its table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "curves.json")
    args = parser.parse_args()
    measuring.use_cores(2)
    folder = args.work / "curves_500x375"
    photographs.make_folder(folder, count=512, width=500, height=375)
    curves: dict[str, list[dict[str, Any]]] = {}
    header = (
        "value",
        "batch",
        "ms a view pair, one core",
        "loader img/s",
        "step img/s",
        "run img/s",
        "loss in step",
        "waiting",
    )
    for setting, values in CURVES.items():
        curves[setting] = [measure(folder, setting, value, seconds=args.seconds) for value in values]
        rows = [
            (
                f"{point['value']:,}",
                str(point["batch"]),
                f"{point['pixels_ms']:.2f}",
                f"{point['loader']:.0f}",
                f"{point['step']:.1f}",
                f"{point['run']:.1f}",
                f"{point['loss_share']:.0%}",
                f"{point['waiting']:.0%}",
            )
            for point in curves[setting]
        ]
        print(f"\n{setting}\n\n{markdown_columns(header, rows)}", flush=True)
    measuring.save_result(args.results, {"base": BASE, "curves": curves})


if __name__ == "__main__":
    main()
