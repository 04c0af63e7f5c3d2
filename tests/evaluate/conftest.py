from pathlib import Path

import pytest

from mocokit.engine.backbone_file import BackboneCard, random_backbone, save_backbone

CARD = BackboneCard(
    arch="resnet10_w32", stem="imagenet", image_size=32, eval_crop_ratio=1.0, mean=(0.5,) * 3, std=(0.25,) * 3, step=7
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose backbone differs from the random-init baseline."""
    (tmp_path / "run").mkdir()
    save_backbone(tmp_path / "run" / "backbone.safetensors", random_backbone(CARD, seed=99), CARD)
    return tmp_path / "run"
