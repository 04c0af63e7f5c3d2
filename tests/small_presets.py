"""The presets, made small enough for a test."""

from pathlib import Path

from mocokit.config.presets import PRESETS
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.nets import backbones


def small(name: str, photos: Path) -> Config:
    """Return a preset at small size: 20 steps of 16 images, with the learning rate scaled linearly.

    Mechanism, optimizer, schedule, augmentation and kind of head are those of the preset.
    """
    preset = PRESETS[name]
    rate = preset.optim.lr * 16 / preset.data.global_batch_size
    settings: dict[str, object] = {
        "data.source": str(photos),
        "data.image_size": 32,
        "data.global_batch_size": 16,
        "data.workers": 0,
        "model.arch": "timm/test_vit" if "vit" in name else "resnet10_w8",
        "model.stem": "imagenet",
        "model.dim": 16,
        "method.bn_groups": min(preset.method.bn_groups, 4),
        "optim.epochs": 4,
        "optim.milestones": (2, 3),
        "optim.lr": rate,
        "optim.warmup_epochs": min(preset.optim.warmup_epochs, 1.0),
        "run.device": "cpu",
        "run.precision": "fp64",
        "run.log_every": 1,
        "run.knn_every": 0,
    }
    of_method: dict[str, dict[str, object]] = {
        "moco": {"method.queue_size": 40},
        "memory-bank": {"method.num_negatives": 24},
        "moco-v3": {"model.head_width": 24},
        "fast-moco": {"model.head_width": 24, "model.predictor_width": 12},
    }
    return replace_settings(preset, settings | of_method.get(preset.method.name, {}))


def add_narrow_backbone() -> None:
    """Register the backbone of `small`: a sixteenth of the work of mocokit's narrowest ResNet."""
    backbones.BACKBONES["resnet10_w8"] = lambda: backbones.narrow_resnet10(8)


def remove_narrow_backbone() -> None:
    """Remove the backbone of `small` again."""
    del backbones.BACKBONES["resnet10_w8"]
