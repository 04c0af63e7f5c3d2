"""What a run says when it can't learn: skipped steps, bad numbers in its state, a BatchNorm leak."""

import math

import pytest
import torch
from torch import nn

from mocokit.engine.health import StateWatch, warnings_of_metrics


class Masked(nn.Module):
    """A layer, BatchNorm, and a mask of -inf, which is no error."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.full((2, 2), -math.inf))
        self.register_buffer("nothing", torch.empty(0))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.layer(rows))
        return out


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["layer.weight", "layer.bias", "norm.running_mean", "norm.running_var"])
def test_a_number_that_became_bad_is_named(name: str, poison: float) -> None:
    module = Masked()
    watch = StateWatch(module, torch.optim.SGD(module.parameters(), lr=0.1))
    assert watch.find() is None
    module.state_dict()[name].view(-1)[-1] = poison
    assert watch.find() == name


def test_the_optimizer_state_is_watched_too() -> None:
    module = Masked()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    watch = StateWatch(module, optimizer)
    module(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert watch.find() is None
    optimizer.state[module.layer.bias]["exp_avg_sq"][0] = math.inf
    assert watch.find() == "the optimizer's exp_avg_sq of parameter 1"


def test_steps_that_are_skipped_often_are_told_but_not_those_of_the_start() -> None:
    def warnings(skipped: int, *, step: int) -> list[str]:
        return warnings_of_metrics({"skipped_steps": float(skipped)}, step=step, num_steps=20)

    assert "9 of the last 20 steps had a gradient that float16 can't hold" in warnings(9, step=1000)[0]
    assert warnings(1, step=1000) == []
    assert warnings(16, step=20) == [], "the scaler looks for its first scale"
