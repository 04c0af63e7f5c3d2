"""LARS: each weight matrix moves by a fixed share of its own length (You et al. 2017), in the two forms in use.

    g <- gradient + decay * w;  g <- trust * |w| / |g| * g        (factor 1 if either length is 0)
    SimCLR ("classic"):  v <- m v + lr g;  w <- w - v             momentum keeps the learning rate of each step
    MoCo v3:             v <- m v + g;     w <- w - lr v          a new learning rate applies to all of the momentum

In both, biases and BatchNorm parameters (one dimension) take neither decay nor trust. timm's Lars has |gradient| +
decay * |w| in place of |g|, and only the second form.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn


class Lars(torch.optim.Optimizer):
    """SGD with a learning rate for each layer.

    Args:
        parameters: Parameters to train.
        lr: Learning rate.
        momentum: m.
        weight_decay: Weight decay of parameters with two dimensions or more.
        trust_coefficient: Share of its own length by which a weight moves at learning rate 1 (0.001 in the papers).
        lr_in_momentum: True for SimCLR's form, False for MoCo v3's.

    """

    _step_supports_amp_scaling = True
    """Tells torch's loss scaler (fp16) not to wait for the device to learn if a gradient was infinite. It then sets two
    scalars during `step`: `found_inf`, above 0 if one was, and `grad_scale`, the factor that gradients still have."""

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

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update each parameter that has a gradient, without waiting for the device; takes no closure.

        If `found_inf` is above 0, nothing changes. Loss scalers and `step_if_finite` set it.
        """
        assert closure is None, "one gradient a step"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return None

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Update one parameter; decisions are `torch.where`, because `if` would wait for the device."""
        grad_scale = getattr(self, "grad_scale", None)
        if grad_scale is not None:
            gradient = gradient / grad_scale
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
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None:
            velocity = torch.where(found_inf > 0, state["velocity"], velocity)
            moved = torch.where(found_inf > 0, parameter, moved)
        state["velocity"].copy_(velocity)
        parameter.copy_(moved)
