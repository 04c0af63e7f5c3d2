"""The optimizer of the papers."""

import torch
from torch import Tensor, nn


def build_sgd(module: nn.Module, *, lr: float, sgd_momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD on all parameters that take a gradient, weight decay on every one of them, BatchNorm and biases too.

    So does the official code (moco/main_moco.py); many reimplementations exempt BatchNorm and are off by that.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=sgd_momentum, weight_decay=weight_decay, fused=True)
    if sgd_momentum:
        for parameter in parameters:  # torch leaves its own uninitialised when the first step is skipped
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def step_if_finite(optimizer: torch.optim.SGD, scaler: torch.amp.GradScaler) -> Tensor:
    """An optimizer step that changes nothing when a gradient is NaN or infinite; whether all were finite.

    The answer is a scalar on the device: neither it nor the step waits for the host. It is the same on all ranks,
    which step with the same sum of gradients. A loss scaler does the like, expects it, and mends it by itself.
    """
    if scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
        return torch.ones((), dtype=torch.bool, device=optimizer.param_groups[0]["params"][0].device)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    finite = torch.isfinite(torch.nn.utils.get_total_norm(gradients))
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # how a loss scaler tells fused optimizers
    optimizer.step()
    return finite


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
