"""The demo: pre-train on the embedded sample on the CPU, then measure what the backbone learned.

The sample has 2,293 train, 740 val and 639 test tiles of thirteen photographs (experiments/build_sample.py). The class
of a tile is its photograph; it is used only for evaluation. SETTINGS were chosen on val; the demo reports test.
"""

from importlib import resources
from pathlib import Path

from mocokit.evaluate.report_knn import KnnRow, compare_with_baselines
from mocokit.run.pretrain import RunResult, pretrain

EPOCHS = 30

SETTINGS: dict[str, object] = {
    "data.image_size": 48,
    "data.global_batch_size": 128,
    "model.arch": "resnet10_w32",
    "model.stem": "imagenet",
    "augment.crop_scale": (0.2, 1.0),
    "method.queue_size": 1024,
    "method.temperature": 0.1,
    "method.bn_groups": 4,
    "optim.lr": 0.1,
    "run.device": "cpu",
    "run.knn_every": 20,
}
"""Changes to `moco-v2-small`: a network and a batch that two CPU cores can train in minutes."""


def sample_path(part: str) -> Path:
    """Return the path of a part of the embedded sample: "train", "val" or "test"."""
    return Path(str(resources.files("mocokit") / "sample" / f"photo_tiles_{part}.zip"))


def run_demo(out: str | Path, *, epochs: int = EPOCHS, seed: int = 0, test: str = "test") -> RunResult:
    """Pre-train on the sample's train part; the kNN monitor evaluates on the part `test`."""
    settings = {**SETTINGS, "optim.epochs": epochs, "run.seed": seed, "data.test": str(sample_path(test))}
    return pretrain("moco-v2-small", data=sample_path("train"), out=out, settings=settings)


def evaluate_demo(run: Path, *, seed: int = 0, test: str = "test") -> list[KnnRow]:
    """Return kNN accuracies of raw pixels, of a random-init backbone and of the pre-trained one."""
    return compare_with_baselines(
        run, bank=sample_path("train"), queries=sample_path(test), device_name="cpu", seed=seed
    )


def free_folder(wanted: str | Path) -> Path:
    """Return `wanted`, or wanted-2, wanted-3, ... if it exists, so that the demo can be repeated."""
    path = Path(wanted)
    number = 1
    while path.exists():
        number += 1
        path = Path(f"{wanted}-{number}")
    return path
