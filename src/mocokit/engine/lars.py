"""LARS: each weight matrix moves by a fixed share of its own length (You et al. 2017), in the two forms in use.

    g <- gradient + decay * w;  g <- trust * |w| / |g| * g  (1 where a length is 0)
    SimCLR ("classic"):  v <- m v + lr g;  w <- w - v          the rate of each step stays in the momentum
    MoCo v3:             v <- m v + g;     w <- w - lr v       a change of rate acts on the whole momentum at once

Biases and BatchNorm parameters (one dimension) take neither decay nor trust in both. timm's Lars puts |gradient| +
decay |w| where these have |g|, and knows only the second form.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn


class Lars(torch.optim.Optimizer):
    """SGD with layer-wise rates.

    Args:
        parameters: What to train.
        lr: Learning rate.
        momentum: m.
        weight_decay: Decay of weights with two dimensions or more.
        trust_coefficient: Share of its own length by which a weight moves at rate 1 (0.001 in the papers).
        lr_in_momentum: SimCLR's form; off: MoCo v3's.

    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        trust_coefficient: float,
        lr_in_momentum: bool,
    ) -> None:
        given = list(parameters)
        groups = [
            {"params": [p for p in given if p.ndim > 1], "adapts": True, "weight_decay": weight_decay},
            {"params": [p for p in given if p.ndim <= 1], "adapts": False, "weight_decay": 0.0},
        ]
        defaults = {"lr": lr, "momentum": momentum, "trust_coefficient": trust_coefficient}
        super().__init__([g for g in groups if g["params"]], {**defaults, "lr_in_momentum": lr_in_momentum})

        self.found_inf: Tensor | None = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move each parameter that has a gradient; never waits for the device. A closure is not supported.

        With `found_inf` set (a scalar; 1: a gradient is not finite), as loss scalers set it, 1 moves nothing.
        """
        assert closure is None, "one gradient a step"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return None

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        gradient = gradient + group["weight_decay"] * parameter
        if group["adapts"]:
            length = parameter.norm()
            slope = gradient.norm()
            ratio = group["trust_coefficient"] * length / slope
            gradient = gradient * torch.where((length > 0) & (slope > 0), ratio, 1.0)
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        inner, outer = (group["lr"], 1.0) if group["lr_in_momentum"] else (1.0, group["lr"])
        velocity = group["momentum"] * state["velocity"] + inner * gradient
        moved = parameter - outer * velocity
        if self.found_inf is not None:
            velocity = torch.where(self.found_inf > 0, state["velocity"], velocity)
            moved = torch.where(self.found_inf > 0, parameter, moved)
        state["velocity"].copy_(velocity)
        parameter.copy_(moved)
