import math

import pytest
import torch
from torch import nn

from mocokit.engine.optim import build_sgd, step_if_finite

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
    (net, optimizer), (twin, twin_optimizer) = _net(), _net()
    for seed in () if first else (1, 2):
        for module, sgd in ((net, optimizer), (twin, twin_optimizer)):
            _backward(module, seed)
            assert step_if_finite(sgd, NO_SCALER)
            sgd.zero_grad()
    _backward(net, 3)
    net[2].weight.grad[1, 2] = poison  # type: ignore[index]
    assert not step_if_finite(optimizer, NO_SCALER)
    optimizer.zero_grad()
    for module, sgd in ((net, optimizer), (twin, twin_optimizer)):  # and the next good step is the one of before
        _backward(module, 4)
        assert step_if_finite(sgd, NO_SCALER)
    for own, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, other)
        assert torch.equal(optimizer.state[own]["momentum_buffer"], twin_optimizer.state[other]["momentum_buffer"])


def test_steps_are_those_of_plain_sgd_bit_by_bit() -> None:
    (net, optimizer), (twin, _) = _net(), _net()
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2, fused=True)
    for seed in range(5):
        _backward(net, seed)
        _backward(twin, seed)
        step_if_finite(optimizer, NO_SCALER)
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
