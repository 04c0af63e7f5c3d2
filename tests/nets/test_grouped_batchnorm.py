import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from mocokit.nets.grouped_batchnorm import GroupedBatchNorm, batchnorm_groups, convert_batchnorm
from tests.oracles import batchnorm_rows


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_each_group_of_consecutive_rows_is_normalised_alone(groups: int, memory_format: torch.memory_format) -> None:
    layer = GroupedBatchNorm(5).double()
    x = torch.randn(8, 5, 3, 3, dtype=torch.float64).contiguous(memory_format=memory_format)
    with batchnorm_groups(layer, groups, updates_statistics=True):
        got = layer(x)
    want = torch.cat([batchnorm_rows(chunk, layer.eps) for chunk in x.chunk(groups)])
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)
    assert got.is_contiguous(memory_format=memory_format)


def test_gradients_equal_those_of_separate_layers() -> None:
    x = torch.randn(8, 5, 3, 3, dtype=torch.float64)
    grouped, plain = GroupedBatchNorm(5).double(), nn.BatchNorm2d(5).double()
    with torch.no_grad():
        weight = torch.randn(5, dtype=torch.float64)
        grouped.weight.copy_(weight), plain.weight.copy_(weight)
    with batchnorm_groups(grouped, 4, updates_statistics=True):
        grouped(x).pow(3).sum().backward()
    torch.cat([plain(chunk) for chunk in x.chunk(4)]).pow(3).sum().backward()
    assert torch.allclose(grouped.weight.grad, plain.weight.grad, rtol=1e-10)  # type: ignore[arg-type]


def test_running_statistics_are_those_of_group_0_and_only_where_it_is() -> None:
    x = torch.randn(8, 5, 3, 3)
    layer, plain = GroupedBatchNorm(5), nn.BatchNorm2d(5)
    with batchnorm_groups(layer, 4, updates_statistics=True):
        layer(x)
    plain(x[:2])
    assert torch.equal(layer.running_mean, plain.running_mean)  # type: ignore[arg-type]
    assert torch.equal(layer.running_var, plain.running_var)  # type: ignore[arg-type]
    before = layer.running_mean.clone()  # type: ignore[union-attr]
    with batchnorm_groups(layer, 4, updates_statistics=False):
        layer(x)
    assert torch.equal(layer.running_mean, before)  # type: ignore[arg-type]
    assert int(layer.num_batches_tracked) == 1  # type: ignore[arg-type]


def test_eval_mode_is_an_ordinary_batchnorm() -> None:
    x = torch.randn(6, 5, 3, 3)
    layer, plain = GroupedBatchNorm(5), nn.BatchNorm2d(5)
    layer(x), plain(x)
    assert torch.equal(layer.eval()(x), plain.eval()(x))


def test_converted_networks_keep_names_shapes_and_values() -> None:
    net = resnet18()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    converted = convert_batchnorm(net)
    assert sum(isinstance(module, GroupedBatchNorm) for module in converted.modules()) == 20
    assert not any(type(module) is nn.BatchNorm2d for module in converted.modules())
    assert {name: value.shape for name, value in converted.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    resnet18().load_state_dict(converted.state_dict())
    assert all(torch.equal(converted.state_dict()[name], value) for name, value in state.items())


def test_one_group_equals_torch_in_a_whole_network() -> None:
    torch.manual_seed(1)
    plain = resnet18()
    grouped = resnet18()
    grouped.load_state_dict(plain.state_dict())
    convert_batchnorm(grouped)
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(plain(x), grouped(x))


def test_rows_that_do_not_split_are_an_error() -> None:
    layer = GroupedBatchNorm(5)
    with (
        batchnorm_groups(layer, 4, updates_statistics=True),
        pytest.raises(ValueError, match="6 rows do not split into 4"),
    ):
        layer(torch.randn(6, 5, 3, 3))


def test_timms_activation_inside_batchnorm_is_kept() -> None:
    from timm.layers.norm_act import BatchNormAct2d

    theirs = BatchNormAct2d(4, act_layer=torch.nn.PReLU, inplace=False)
    torch.nn.init.normal_(theirs.weight)
    ours = convert_batchnorm(copy.deepcopy(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(8, 4, 5, 5)
    with batchnorm_groups(ours, 2, updates_statistics=True):
        got = ours(x)
    assert torch.allclose(got, torch.cat([copy.deepcopy(theirs)(half) for half in x.chunk(2)]), atol=1e-6)
    theirs(x[:4])
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-6)


def test_a_batchnorm_with_parts_of_its_own_is_refused() -> None:
    class Strange(torch.nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(4)
            self.gate = torch.nn.Sigmoid()

    with pytest.raises(ValueError, match="its Strange is not known to mocokit"):
        convert_batchnorm(torch.nn.Sequential(Strange()))
