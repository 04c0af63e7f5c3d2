"""Every preset trains, and its loss is its oracle's at each step: the numbers, not merely their fall."""

import json
from pathlib import Path

import pytest

import mocokit
from mocokit.config import Config
from mocokit.nets import backbones
from mocokit.presets import PRESETS
from mocokit.settings import replace_settings
from tests.training_oracles import oracle_losses


def small(name: str, photos: Path) -> Config:
    """The preset with all that makes it large made small: 20 steps of 16 images at the rate scaled linearly; its
    mechanism, optimizer, schedule, augmentation and kind of head stay.
    """
    preset = PRESETS[name]
    rate = preset.optim.lr * 16 / preset.data.global_batch_size
    settings: dict[str, object] = {
        "data.source": str(photos), "data.image_size": 32, "data.global_batch_size": 16, "data.workers": 0,
        "model.arch": "timm/test_vit" if "vit" in name else "resnet10_w8", "model.stem": "imagenet", "model.dim": 16,
        "method.bn_groups": min(preset.method.bn_groups, 4), "optim.epochs": 4, "optim.milestones": (2, 3),
        "optim.lr": rate,
        "optim.warmup_epochs": min(preset.optim.warmup_epochs, 1.0), "run.device": "cpu", "run.precision": "fp64",
        "run.log_every": 1, "run.knn_every": 0,
    }  # fmt: skip
    of_method: dict[str, dict[str, object]] = {
        "moco": {"method.queue_size": 40},
        "memory-bank": {"method.num_negatives": 24},
        "moco-v3": {"model.head_width": 24},
    }
    return replace_settings(preset, settings | of_method.get(preset.method.name, {}))


@pytest.fixture(autouse=True)
def _narrow_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixteenth of the work of the narrowest one that ships."""
    monkeypatch.setitem(backbones.BACKBONES, "resnet10_w8", lambda: backbones._narrow_resnet10(8))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_preset_trains_with_the_loss_of_its_oracle(name: str, photos: Path, tmp_path: Path) -> None:
    config = small(name, photos)
    mocokit.pretrain(config, out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses, wanted = [line["loss"] for line in lines], list(oracle_losses(config))
    assert len(losses) == len(set(losses)) == 20
    assert losses[:3] == pytest.approx(wanted[:3], rel=1e-10)
    assert losses == pytest.approx(wanted, rel=1e-6), "roundings grow along the run"
