import pytest
import torch

from mocokit.engine.agreement import weights_digest
from mocokit.evaluate.frozen import FrozenWeightsMovedError, frozen
from mocokit.nets.backbones import build_backbone


def test_frozen_restores_modes_and_gradients_if_no_weight_changed() -> None:
    backbone = build_backbone("resnet10_w32").train()
    backbone.get_submodule("bn1").eval()
    backbone.get_submodule("conv1").requires_grad_(False)
    with frozen(backbone):
        assert not backbone.training
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        backbone(torch.randn(2, 3, 32, 32))
    assert [name for name, part in backbone.named_modules() if not part.training] == ["bn1"]
    frozen_now = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert frozen_now == ["conv1.weight"]


def test_a_forward_in_train_mode_changes_batchnorm_statistics_and_is_an_error() -> None:
    backbone = build_backbone("resnet10_w32")
    with (
        pytest.raises(FrozenWeightsMovedError, match=r"frozen tensors changed, such as bn1.running_mean"),
        frozen(backbone),
    ):
        backbone.train()
        backbone(torch.randn(2, 3, 32, 32))


def test_a_change_of_one_bit_of_one_weight_is_an_error() -> None:
    backbone = build_backbone("resnet10_w32")
    before = weights_digest(backbone)
    with (
        pytest.raises(FrozenWeightsMovedError, match=r"1 of .* changed, such as layer4.0.conv2.weight"),
        frozen(backbone),
    ):
        weight = backbone.get_parameter("layer4.0.conv2.weight")
        with torch.no_grad():
            weight.view(-1)[7] = torch.nextafter(weight.view(-1)[7], torch.tensor(torch.inf))
    assert weights_digest(backbone) != before


def test_the_digest_distinguishes_minus_zero_from_zero() -> None:
    layer = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(layer.bias)
    before = weights_digest(layer)
    layer.bias.data.neg_()
    assert weights_digest(layer) != before
