import math

import pytest
import torch
from torch import nn

from mocokit.engine.lars import Lars
from mocokit.engine.optimizer import OPTIMIZERS, build_optimizer, build_sgd, set_lr, step_if_finite
from tests.oracles import lars_steps


@pytest.mark.parametrize("classic", [False, True])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 3, 3), (5,)])
def test_lars_equals_the_papers_algorithm_in_both_forms(shape: tuple[int, ...], classic: bool) -> None:
    """The rate changes at each step: only then do the two forms differ. Vectors take neither decay nor trust."""
    weight = torch.randn(shape, dtype=torch.float64)
    gradients = [torch.randn(shape, dtype=torch.float64) for _ in range(4)]
    rates = [0.5, 2.0, 9.6, 1.0]
    parameter = nn.Parameter(weight.clone())
    optimizer = Lars(
        [parameter], lr=0.0, momentum=0.9, weight_decay=0.1, trust_coefficient=0.001, lr_in_momentum=classic
    )
    for gradient, lr in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = gradient
        optimizer.step()
    want = lars_steps(weight, gradients, rates, decay=0.1, trust=0.001, classic=classic)
    assert torch.allclose(parameter.detach(), want, rtol=1e-12, atol=0)


def test_a_part_with_a_constant_rate_ignores_the_schedule_and_keeps_it_over_a_checkpoint() -> None:
    """Fast-MoCo's predictor. Everything else follows `set_lr`; a run that is resumed goes on likewise."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    options = {"lr": 0.1, "sgd_momentum": 0.9, "weight_decay": 0.01}
    optimizer = build_sgd(net, **options, constant_lr=net[1])
    weights = [parameter.detach().clone() for parameter in net.parameters()]
    velocities = [torch.zeros_like(weight) for weight in weights]
    for scheduled in (0.02, 0.1, 0.0):
        set_lr(optimizer, scheduled)
        net(torch.ones(2, 4, dtype=torch.float64)).square().sum().backward()
        for number, parameter in enumerate(net.parameters()):
            assert parameter.grad is not None
            velocities[number] = 0.9 * velocities[number] + parameter.grad + 0.01 * weights[number]
            weights[number] = weights[number] - (scheduled if number < 2 else 0.1) * velocities[number]
        optimizer.step()
        optimizer.zero_grad()
        for parameter, want in zip(net.parameters(), weights, strict=True):
            assert torch.allclose(parameter, want, rtol=1e-12)
        resumed = build_sgd(net, **options, constant_lr=net[1])
        resumed.load_state_dict(optimizer.state_dict())
        optimizer = resumed


def test_the_two_forms_agree_while_the_rate_stays() -> None:
    def run(name: str) -> torch.Tensor:
        torch.manual_seed(0)
        net = nn.Linear(4, 3).double()
        optimizer = build_optimizer(
            net, name=name, lr=2.0, sgd_momentum=0.9, weight_decay=1e-4, trust_coefficient=0.001
        )
        for _ in range(5):
            optimizer.zero_grad()
            net(torch.ones(2, 4, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
        return net.weight.detach()

    assert torch.allclose(run("lars"), run("lars-classic"), rtol=1e-12)


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_a_length_of_zero_takes_the_plain_gradient(zero: str) -> None:
    parameter = nn.Parameter(torch.zeros(2, 2) if zero == "weight" else torch.ones(2, 2))
    parameter.grad = torch.zeros(2, 2) if zero == "gradient" else torch.ones(2, 2)
    optimizer = Lars([parameter], lr=1.0, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001, lr_in_momentum=True)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.full((2, 2), 1.0 if zero == "gradient" else -1.0))


def test_frozen_parameters_are_not_given_to_an_optimizer() -> None:
    net = nn.Linear(4, 3)
    net.bias.requires_grad_(False)
    for name in OPTIMIZERS:
        optimizer = build_optimizer(net, name=name, lr=1.0, sgd_momentum=0.9, weight_decay=0.1, trust_coefficient=0.001)
        assert [p.shape for group in optimizer.param_groups for p in group["params"]] == [net.weight.shape], name


def test_an_unknown_optimizer_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"optim.name='lamb': unknown; .*\['sgd', 'lars', 'lars-classic', 'adamw'\]"):
        build_optimizer(
            nn.Linear(1, 1), name="lamb", lr=1.0, sgd_momentum=0.9, weight_decay=0.0, trust_coefficient=0.001
        )


NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def _net() -> tuple[nn.Module, torch.optim.SGD]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    return net, build_sgd(net, lr=0.1, sgd_momentum=0.9, weight_decay=1e-2)


def _backward(net: nn.Module, seed: int) -> None:
    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
    net(inputs).square().sum().backward()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
def test_a_bad_gradient_changes_neither_weights_nor_momentum(poison: float, first: bool) -> None:
    net, optimizer = _net()
    twin, twin_optimizer = _net()
    for seed in () if first else (1, 2):
        for module, sgd in ((net, optimizer), (twin, twin_optimizer)):
            _backward(module, seed)
            assert step_if_finite(sgd, NO_SCALER)
            sgd.zero_grad()
    _backward(net, 3)
    net[2].weight.grad[1, 2] = poison  # type: ignore[index]
    assert not step_if_finite(optimizer, NO_SCALER)
    optimizer.zero_grad()
    for module, sgd in (
        (net, optimizer),
        (twin, twin_optimizer),
    ):  # the next good step is as if there had been no bad one
        _backward(module, 4)
        assert step_if_finite(sgd, NO_SCALER)
    for own, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, other)
        assert torch.equal(optimizer.state[own]["momentum_buffer"], twin_optimizer.state[other]["momentum_buffer"])


def test_steps_are_those_of_plain_sgd_bit_by_bit() -> None:
    net, optimizer = _net()
    twin, _ = _net()
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2, fused=True)
    for seed in range(5):
        _backward(net, seed)
        _backward(twin, seed)
        step_if_finite(optimizer, NO_SCALER)
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def _scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=1024.0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_scaled_step_is_skipped_and_told_if_its_gradient_is_bad(name: str, clip_norm: float, poison: float) -> None:
    net, _ = _net()
    optimizer = OPTIMIZERS[name](net, 0.1, 0.9, 1e-2, 0.001, None)
    scaler = _scaler()
    before = [parameter.clone() for parameter in net.parameters()]
    for halvings in (1, 2, 3):
        scaler.scale(net(torch.ones(4, 5)).sum()).backward()
        net[2].weight.grad[1, 2] = poison  # type: ignore[index]
        assert not step_if_finite(optimizer, scaler, clip_norm=clip_norm)
        optimizer.zero_grad()
        assert scaler.get_scale() == 1024.0 / 2**halvings
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    scaler.scale(net(torch.ones(4, 5)).sum()).backward()
    assert step_if_finite(optimizer, scaler, clip_norm=clip_norm)
    assert not all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_scaled_step_is_the_unscaled_one_bit_by_bit(name: str, clip_norm: float) -> None:
    nets = {}
    for scaler in (_scaler(), NO_SCALER):
        net, _ = _net()
        optimizer = OPTIMIZERS[name](net, 0.1, 0.9, 1e-2, 0.001, None)
        for seed in range(4):
            inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
            scaler.scale(net(inputs).square().sum()).backward()
            step_if_finite(optimizer, scaler, clip_norm=clip_norm)
            optimizer.zero_grad()
        nets[scaler.is_enabled()] = list(net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(nets[True], nets[False], strict=True))
