from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mocokit.data.sources.open_source import open_source
from mocokit.data.views import ImageReader
from mocokit.engine.agreement import weights_digest
from mocokit.engine.precision import Precision
from mocokit.evaluate import finetune
from mocokit.evaluate.features import EvaluationView, LabelledImages, choose_images
from mocokit.evaluate.finetune import build_optimizer, fine_tune, fine_tune_and_test
from mocokit.evaluate.protocols import FINETUNE_PROTOCOLS, FineTuneProtocol
from mocokit.evaluate.splits import balanced_subset
from mocokit.nets.backbones import build_backbone, build_seeded
from mocokit.nets.pixels import PixelNormalize

CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)
PIXELS = PixelNormalize((0.5,) * 3, (0.25,) * 3)
GRID = FINETUNE_PROTOCOLS["lr-grid"].fitted(80, epochs_scale=0.1)
LARS = FINETUNE_PROTOCOLS["simclr"].fitted(80, epochs_scale=0.05)


@pytest.fixture
def images(photos: Path) -> LabelledImages:
    view = EvaluationView(size_px=32, crop_ratio=1.0, num_workers=0)
    return choose_images(ImageReader(open_source(photos), max_image_px=10**6, seed=0), view)


def _backbone() -> nn.Module:
    return build_seeded(lambda: build_backbone("resnet10_w32"), 0)


def test_fine_tuning_changes_a_copy_of_the_backbone_and_trains_every_layer(images: LabelledImages) -> None:
    backbone = _backbone()
    before = weights_digest(backbone)
    network = fine_tune(backbone, PIXELS, images, GRID, lr=0.01, head_multiplier=10, device=CPU, precision=FP32, seed=0)
    assert weights_digest(backbone) == before
    trained = network.get_submodule("1")
    moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), backbone.parameters(), strict=True)]
    assert all(moved), "every layer is trained"
    assert not torch.equal(trained.get_buffer("bn1.running_mean"), backbone.get_buffer("bn1.running_mean"))
    assert not network.training


def test_the_test_images_do_not_influence_the_rates(images: LabelledImages, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = _spied(monkeypatch)
    train = images.only(images.indices[::2])
    test = images.only(images.indices[1::2])
    protocol = replace(GRID, rates=(0.1, 0.001), head_multipliers=(1.0,))
    result = fine_tune_and_test(_backbone(), PIXELS, train, test, protocol, device=CPU, precision=FP32, seed=0)
    assert [set(part) <= set(train.indices) for part in scored] == [True, True, False]
    assert scored[-1] == test.indices
    assert result.lr in (0.1, 0.001) and 0 <= result.accuracy <= 1


def test_a_part_of_the_labels_may_choose_the_rates(images: LabelledImages, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    monkeypatch.setattr(finetune, "fine_tune", _noting(trained))
    scored = _spied(monkeypatch)
    protocol = replace(GRID, rates=(0.1, 0.001), head_multipliers=(1.0,), choose_on=20)
    fine_tune_and_test(_backbone(), PIXELS, images, images, protocol, device=CPU, precision=FP32, seed=0)
    part = set(balanced_subset(images, 20, seed=0))
    assert [set(held) < part for held in scored] == [True, True, False]
    assert trained == [20 - len(scored[0])] * 2 + [len(images.indices)], "the chosen rates train on all"


def _noting(counts: list[int]) -> Callable[..., nn.Module]:
    """Return a `fine_tune` that records its number of images in `counts`."""
    train = finetune.fine_tune

    def noted(backbone: nn.Module, pixels: nn.Module, labelled: LabelledImages, *args: Any, **named: Any) -> nn.Module:
        counts.append(len(labelled.indices))
        return train(backbone, pixels, labelled, *args, **named)

    return noted


def _spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Record the images of each later call of `score_network`."""
    scored: list[tuple[int, ...]] = []
    score = finetune.score_network

    def spy(
        network: nn.Module, part: LabelledImages, *, device: torch.device, precision: Precision
    ) -> tuple[float, float]:
        scored.append(part.indices)
        return score(network, part, device=device, precision=precision)

    monkeypatch.setattr(finetune, "score_network", spy)
    return scored


def test_the_head_learns_at_its_multiple() -> None:
    head = nn.Linear(256, 5)
    optimizer = build_optimizer(_backbone(), head, GRID, lr=0.01, head_multiplier=100)
    peaks = {id(p): group["peak_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert peaks[id(head.weight)] == peaks[id(head.bias)] == pytest.approx(1.0)
    assert sorted(set(peaks.values())) == pytest.approx([0.01, 1.0])


def test_lars_adapts_kernels_by_their_trust_ratio_and_leaves_batchnorm_alone() -> None:
    """First step, weight decay 0: w - lr * 0.001 * |w| / |g| * g for kernels, w - lr * g for 1-D parameters."""
    backbone = _backbone()
    head = nn.Linear(256, 5)
    optimizer = build_optimizer(backbone, head, LARS, lr=0.16, head_multiplier=1)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    for p in backbone.parameters():
        p.grad = torch.randn_like(p)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    optimizer.step()
    for name in ("layer1.0.conv1.weight", "bn1.weight", "bn1.bias"):
        p = backbone.get_parameter(name)
        old = before[name]
        assert p.grad is not None
        trust = 0.001 * old.norm() / p.grad.norm() if old.dim() > 1 else 1.0
        torch.testing.assert_close(p.detach(), old - 0.16 * trust * p.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("protocol", [GRID, LARS], ids=["sgd", "lars"])
def test_the_same_seed_gives_the_same_network(images: LabelledImages, protocol: FineTuneProtocol) -> None:
    few = images.only(images.indices[::5])
    digests = []
    for seed in (0, 0, 1):
        network = fine_tune(
            _backbone(), PIXELS, few, protocol, lr=0.05, head_multiplier=1, device=CPU, precision=FP32, seed=seed
        )
        digests.append(weights_digest(network))
    assert digests[0] == digests[1] != digests[2]
