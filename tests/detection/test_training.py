"""The training loop of a detector: optimizer, interruption, and precise BatchNorm."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mocokit.detection import training as detection_training
from mocokit.detection.data_sets import DetectionSet, open_voc
from mocokit.detection.detector import build_detector
from mocokit.detection.recipes import VOC_C4_24K, DetectionRecipe
from mocokit.detection.training import build_optimizer, precise_batchnorm, train_detector, training_batches
from mocokit.engine.checkpoint import list_checkpoints
from mocokit.nets.backbones import build_backbone, build_seeded
from tests.run_process import same

CPU = torch.device("cpu")
TINY = replace(
    VOC_C4_24K.rescaled(2).at_short_side(64).shortened(5),
    rpn_before_nms=(60, 60),
    rpn_after_nms=(20, 20),
    regions_per_image=8,
    precise_bn_iterations=2,
    milestones=(3, 4),
)


@pytest.fixture
def voc(pasted_voc: Path) -> DetectionSet:
    return open_voc(pasted_voc, ["2007_trainval"])


def _detector(recipe: DetectionRecipe = TINY) -> Any:
    def build() -> Any:
        return build_detector(
            build_backbone("resnet10_w16"),
            num_classes=2,
            neck=recipe.neck,
            masks=False,
            mean=(0.5,) * 3,
            std=(0.2,) * 3,
            anchor_sizes_px=recipe.anchor_sizes_px,
            rpn_before_nms=recipe.rpn_before_nms,
            rpn_after_nms=recipe.rpn_after_nms,
            regions_per_image=recipe.regions_per_image,
        )

    return build_seeded(build, 0)


def test_weight_decay_spares_normalisation_layers() -> None:
    detector = _detector()
    decayed, spared = build_optimizer(detector, TINY).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0.0)
    assert decayed["momentum"] == spared["momentum"] == 0.9
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    without = {names[id(parameter)] for parameter in spared["params"]}
    expected = {name for name in names.values() if ".bn" in name or ".norm." in name or "downsample.1" in name}
    assert without == expected
    assert "roi_heads.box_head.norm.weight" in without
    assert len(without) + len(decayed["params"]) == len(names)


def test_each_iteration_has_its_own_learning_rate(voc: DetectionSet, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = list[float]()
    step = torch.optim.SGD.step

    def spy(optimizer: torch.optim.SGD) -> None:
        rates.extend({group["lr"] for group in optimizer.param_groups})
        step(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    recipe = replace(TINY, warmup_iterations=2)
    losses = train_detector(_detector(), voc, recipe, device=CPU, seed=0)
    assert rates == pytest.approx([0.0025 * factor for factor in (1e-3, 0.5005, 1, 0.1, 0.01)])
    assert len(losses) == 5


def test_an_interrupted_trial_continues_to_the_same_result(
    voc: DetectionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection_training, "SAVE_EVERY", 2)
    whole = _detector()
    losses = train_detector(whole, voc, TINY, device=CPU, seed=7)

    def cut(done: int, _loss: float) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_detector(_detector(), voc, TINY, device=CPU, seed=7, checkpoints=tmp_path, on_iteration=cut)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000000004.pt"]
    continued = _detector()
    seen = list[int]()
    resumed = train_detector(
        continued,
        voc,
        TINY,
        device=CPU,
        seed=7,
        checkpoints=tmp_path,
        on_iteration=lambda done, _loss: seen.append(done),
    )
    assert seen == [5]
    assert resumed == losses
    assert same(continued.state_dict(), whole.state_dict())


def test_precise_batchnorm_is_the_mean_of_the_batches(voc: DetectionSet) -> None:
    detector = _detector().train()
    batches = list(training_batches(voc, TINY, start=0, seed=0, num_workers=0))[:3]
    layer = detector.backbone.bn1
    inputs = list[torch.Tensor]()
    layer.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0]))
    precise_batchnorm(detector, batches, device=CPU)
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs])
    variances = torch.stack([x.var(dim=(0, 2, 3)) for x in inputs])
    assert len(inputs) == 3
    assert torch.allclose(layer.running_mean, means.mean(dim=0), atol=1e-6)
    assert torch.allclose(layer.running_var, variances.mean(dim=0), rtol=1e-5)
    layers = [layer for layer in detector.modules() if isinstance(layer, _BatchNorm)]
    assert {layer.momentum for layer in layers} == {0.1}  # as before
    assert all(int(layer.num_batches_tracked) == 3 for layer in layers)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_ends_the_trial(voc: DetectionSet) -> None:
    detector = _detector()
    torch.nn.init.constant_(detector.roi_heads.box_predictor.cls_score.bias, float("nan"))
    with pytest.raises(FloatingPointError, match=r"lr=0\.0025: the loss is nan at iteration 0"):
        train_detector(detector, voc, TINY, device=CPU, seed=0)


def test_a_recipe_must_fit_the_set(voc: DetectionSet) -> None:
    with pytest.raises(ValueError, match="recipe=voc-c4-24k: learns masks, which VOC folders lack"):
        train_detector(_detector(), voc, replace(TINY, masks=True), device=CPU, seed=0)
    with pytest.raises(ValueError, match="batch=7: larger than the 6 training images"):
        train_detector(_detector(), voc, TINY.rescaled(7), device=CPU, seed=0)
