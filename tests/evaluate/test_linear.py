from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mocokit.data.sources.open_source import open_source
from mocokit.data.views import ImageReader
from mocokit.engine.agreement import digest_tensors
from mocokit.engine.optimizer import set_lr
from mocokit.evaluate.features import EvaluationView, LabelledImages, choose_images, embed_with, extract_features
from mocokit.evaluate.frozen import FrozenWeightsMovedError
from mocokit.evaluate.linear import build_classifier, train_linear
from mocokit.evaluate.protocols import LINEAR_PROTOCOLS
from mocokit.nets.backbones import build_backbone, build_seeded
from mocokit.nets.pixels import PixelNormalize

CPU = torch.device("cpu")
PROTOCOL = LINEAR_PROTOCOLS["moco"].fitted(80, epochs_scale=0.03)
PIXELS = PixelNormalize((0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def images(photos: Path) -> LabelledImages:
    view = EvaluationView(size_px=32, crop_ratio=1.0, num_workers=0)
    return choose_images(ImageReader(open_source(photos), max_image_px=10**6, seed=0), view)


def _backbone() -> nn.Module:
    return build_seeded(lambda: build_backbone("resnet10_w32"), 0)


def _train(backbone: nn.Module, images: LabelledImages, seed: int = 0) -> list[float]:
    embed = embed_with(backbone, PIXELS)
    test = extract_features(embed, images, device=CPU)
    return train_linear(backbone, embed, images, test, PROTOCOL, device=CPU, seed=seed)


def test_training_changes_no_bit_of_the_backbone_and_the_head_learns(images: LabelledImages) -> None:
    backbone = _backbone().train()
    before = digest_tensors(backbone.state_dict())
    accuracies = _train(backbone, images)
    assert digest_tensors(backbone.state_dict()) == before
    assert backbone.training, "as it was"
    assert len(accuracies) == 3
    assert max(accuracies) >= 0.3, "chance is 0.2"


def test_the_same_seed_gives_the_same_accuracies_and_another_seed_others(images: LabelledImages) -> None:
    results = [_train(_backbone(), images, seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


def test_an_embedding_that_changes_batchnorm_statistics_is_an_error(images: LabelledImages) -> None:
    backbone = _backbone()
    test = extract_features(embed_with(backbone, PIXELS), images, device=CPU)

    def embed_in_train_mode(pixels: Tensor) -> Tensor:
        rows: Tensor = backbone.train()(PIXELS(pixels))
        return rows

    with pytest.raises(FrozenWeightsMovedError, match="running_mean"):
        train_linear(backbone, embed_in_train_mode, images, test, PROTOCOL, device=CPU, seed=0)


def test_the_head_has_the_official_initial_weights() -> None:
    head = build_classifier(2048, 1000, init_std=0.01, seed=0)
    assert (head.bias == 0).all()
    weights = head.weight.detach()
    assert float(weights.std()) == pytest.approx(0.01, rel=0.01)
    assert abs(float(weights.mean())) < 4 * 0.01 / 2_048_000**0.5
    again, other = (build_classifier(2048, 1000, init_std=0.01, seed=seed) for seed in (0, 1))
    assert torch.equal(head.weight, again.weight) and not torch.equal(head.weight, other.weight)


def test_the_lightly_protocol_keeps_torchs_initial_weights() -> None:
    head = build_classifier(2048, 10, init_std=None, seed=0)
    assert 0 < float(head.weight.detach().abs().max()) <= 2048**-0.5
    assert (head.bias != 0).any()


def test_every_head_step_follows_the_schedule(images: LabelledImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGD gets the published rate at the batch, dropped tenfold at 60 % and 80 % of the steps."""
    from mocokit.evaluate import linear

    used: list[float] = []

    def spy(optimizer: torch.optim.Optimizer, lr: float) -> None:
        set_lr(optimizer, lr)
        used.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(linear, "set_lr", spy)
    protocol = replace(LINEAR_PROTOCOLS["moco"].fitted(80, epochs_scale=0.05), batch_size=40)
    embed = embed_with(_backbone(), PIXELS)
    test = extract_features(embed, images, device=CPU)
    train_linear(_backbone(), embed, images, test, protocol, device=CPU, seed=0)
    peak = 30 * 40 / 256
    assert used == pytest.approx([peak] * 6 + [peak / 10] * 2 + [peak / 100] * 2)
