import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from mocokit import distributed
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
    grouped = GroupedBatchNorm(5).double()
    plain = nn.BatchNorm2d(5).double()
    with torch.no_grad():
        weight = torch.randn(5, dtype=torch.float64)
        grouped.weight.copy_(weight), plain.weight.copy_(weight)
    with batchnorm_groups(grouped, 4, updates_statistics=True):
        grouped(x).pow(3).sum().backward()
    torch.cat([plain(chunk) for chunk in x.chunk(4)]).pow(3).sum().backward()
    assert torch.allclose(grouped.weight.grad, plain.weight.grad, rtol=1e-10)  # type: ignore[arg-type]


def test_running_statistics_follow_group_0_and_only_if_asked() -> None:
    x = torch.randn(8, 5, 3, 3)
    layer = GroupedBatchNorm(5)
    plain = nn.BatchNorm2d(5)
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
    layer = GroupedBatchNorm(5)
    plain = nn.BatchNorm2d(5)
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


def test_the_activation_inside_timms_batchnorm_is_kept() -> None:
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


def test_a_batchnorm_with_unknown_layers_inside_is_refused() -> None:
    class Strange(torch.nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(4)
            self.gate = torch.nn.Sigmoid()

    with pytest.raises(ValueError, match="its Strange is not known to mocokit"):
        convert_batchnorm(torch.nn.Sequential(Strange()))


@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 3, 3)])
def test_layers_without_scale_and_shift_are_grouped_too(shape: tuple[int, ...]) -> None:
    layer = convert_batchnorm(nn.BatchNorm1d(5, affine=False)).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    with batchnorm_groups(layer, 4, updates_statistics=True):
        layer(x).pow(3).sum().backward()
    plain = x.detach().clone().requires_grad_()
    chunks = [batchnorm_rows(chunk.reshape(*chunk.shape[:2], -1, 1), 1e-5) for chunk in plain.chunk(4)]
    torch.cat(chunks).pow(3).sum().backward()
    assert torch.allclose(x.grad, plain.grad, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]


def test_a_frozen_shift_stays_frozen_when_converted() -> None:
    plain = nn.BatchNorm1d(5)
    plain.bias.requires_grad_(False)
    converted = convert_batchnorm(plain)
    assert [parameter.requires_grad for parameter in converted.parameters()] == [True, False]


class _Ranks:
    """Two threads as ranks: each call of `all_gather_rows` waits for both, like a collective."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)
        self.slots = [torch.empty(0)] * 2
        self.local = threading.local()

    def all_gather_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        assert counts == [1, 1]
        self.slots[self.local.rank] = rows
        self.barrier.wait()
        gathered = torch.cat(self.slots)
        self.barrier.wait()
        return gathered


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 3, 2)])
def test_a_group_over_two_ranks_is_a_group_in_one_process(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare outputs, all gradients and running statistics in float64; test_presets.py has real processes."""
    x = torch.randn(shape, dtype=torch.float64)
    ranks = _Ranks()
    weights = torch.randn(shape, dtype=torch.float64)
    whole = GroupedBatchNorm(5).double()
    nn.init.normal_(whole.weight)
    layers = [copy.deepcopy(whole) for _ in range(2)]
    plain = x.clone().requires_grad_()
    wanted = whole(plain)
    (wanted * weights).sum().backward()
    monkeypatch.setattr(distributed, "all_gather_rows", ranks.all_gather_rows)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts = [part.clone().requires_grad_() for part in x.chunk(2)]

    def run(rank: int) -> torch.Tensor:
        ranks.local.rank = rank
        with batchnorm_groups(layers[rank], 1, updates_statistics=True, ranks=range(2)):
            out: torch.Tensor = layers[rank](parts[rank])
        (out * weights.chunk(2)[rank]).sum().backward()
        return out.detach()

    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(run, range(2)))
    assert torch.allclose(torch.cat(outputs), wanted, rtol=1e-10, atol=1e-12)
    assert torch.allclose(torch.cat([part.grad for part in parts]), plain.grad, rtol=1e-9, atol=1e-12)  # type: ignore
    for name, parameter in whole.named_parameters():
        total = sum(layer.get_parameter(name).grad for layer in layers)  # type: ignore[misc]
        assert torch.allclose(total, parameter.grad, rtol=1e-10), name  # type: ignore[arg-type]
    for layer in layers:
        assert torch.allclose(layer.running_mean, whole.running_mean)  # type: ignore[arg-type]
        assert torch.allclose(layer.running_var, whole.running_var)  # type: ignore[arg-type]


@pytest.mark.parametrize("ranks", [range(1), range(2)])
def test_compiled_networks_equal_eager_ones(ranks: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather_rows", lambda rows, counts: torch.cat([rows, rows.flip(-1) + 0.1]))
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.BatchNorm2d(6),
    ]
    eager = convert_batchnorm(nn.Sequential(*layers)).double()
    compiled = copy.deepcopy(eager)
    groups = 1 if len(ranks) > 1 else 2
    # "aot_eager": everything of torch.compile except the generated code
    compiled.compile(backend="aot_eager", fullgraph=True)
    x = torch.randn(8, 3, 9, 9, dtype=torch.float64)
    results = list[list[torch.Tensor]]()
    for network in (eager, compiled):
        with batchnorm_groups(network, groups, updates_statistics=True, ranks=ranks):
            out = network(x)
        out.pow(3).sum().backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        results.append([out, *gradients, *network.state_dict().values()])
    for wanted, got in zip(*results, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-12)
