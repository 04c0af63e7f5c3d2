"""The demo: pre-train on the embedded sample with the CPU, then ask whether it learned anything.

The sample is 2,293 + 740 + 639 tiles of thirteen photographs (experiments/build_sample.py); the class of a tile,
used for evaluation only, is the photograph. Choices were made on the val part; the demo reports the test part.
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
"""What differs from `moco-v2-small`: a network and a batch that two CPU cores can train in minutes."""


def sample_path(part: str) -> Path:
    """The embedded sample: "train", "val" or "test"."""
    return Path(str(resources.files("mocokit") / "sample" / f"photo_tiles_{part}.zip"))


def run_demo(out: str | Path, *, epochs: int = EPOCHS, seed: int = 0, test: str = "test") -> RunResult:
    """Pre-train on the sample's train part; the kNN monitor asks about `test`."""
    settings = {**SETTINGS, "optim.epochs": epochs, "run.seed": seed, "data.test": str(sample_path(test))}
    return pretrain("moco-v2-small", data=sample_path("train"), out=out, settings=settings)


def judge(run: Path, *, seed: int = 0, test: str = "test") -> list[KnnRow]:
    """kNN accuracy of raw pixels, of a random-init backbone and of the pre-trained one."""
    return compare_with_baselines(
        run, bank=sample_path("train"), queries=sample_path(test), device_name="cpu", seed=seed
    )


def free_folder(wanted: str | Path) -> Path:
    """`wanted`, or the first of wanted-2, wanted-3, ... that does not exist yet, so that the demo can be repeated."""
    path = Path(wanted)
    number = 1
    while path.exists():
        number += 1
        path = Path(f"{wanted}-{number}")
    return path
