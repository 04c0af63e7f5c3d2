"""The optimizers of the papers."""

import torch
from torch import Tensor, nn

from mocokit.distributed.fsdp import whole
from mocokit.engine.lars import Lars


def build_sgd(module: nn.Module, *, lr: float, sgd_momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD on all parameters that take a gradient, weight decay on every one of them, BatchNorm and biases too.

    So does the official code (moco/main_moco.py); many reimplementations exempt BatchNorm and are off by that.
    """
    parameters = _trained(module)
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=sgd_momentum, weight_decay=weight_decay, fused=True)
    if sgd_momentum:
        for parameter in parameters:  # torch leaves its own uninitialised when the first step is skipped
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_optimizer(
    module: nn.Module, *, name: str, lr: float, sgd_momentum: float, weight_decay: float, trust_coefficient: float
) -> torch.optim.Optimizer:
    """The optimizer of one of the papers, on all parameters that take a gradient.

    Args:
        module: The method.
        name: "sgd" (MoCo v1, v2), "lars" (MoCo v3 on ResNets), "lars-classic" (SimCLR) or "adamw" (MoCo v3 on ViTs:
            default betas, decay on all parameters).
        lr: Learning rate.
        sgd_momentum: Momentum of SGD and LARS.
        weight_decay: Weight decay; LARS leaves out biases and BatchNorm.
        trust_coefficient: Of LARS.

    Raises:
        ValueError: Unknown name.

    """
    match name:
        case "sgd":
            return build_sgd(module, lr=lr, sgd_momentum=sgd_momentum, weight_decay=weight_decay)
        case "lars" | "lars-classic":
            return Lars(
                _trained(module),
                lr=lr,
                momentum=sgd_momentum,
                weight_decay=weight_decay,
                trust_coefficient=trust_coefficient,
                lr_in_momentum=name == "lars-classic",
            )
        case "adamw":
            return torch.optim.AdamW(_trained(module), lr=lr, weight_decay=weight_decay, fused=True)
    raise ValueError(f"optim.name={name!r}: unknown; choose sgd, lars, lars-classic or adamw")


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def step_if_finite(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, clip_norm: float = 0.0) -> Tensor:
    """An optimizer step that changes nothing when a gradient is NaN or infinite; whether all were finite.

    A gradient longer than `clip_norm`, over all parameters, is scaled down to that length first; 0: never.

    The answer is a scalar on the device: neither it nor the step waits for the host. It is the same on all ranks,
    which step with the same sum of gradients. A loss scaler does the like, expects it, and mends it by itself.
    """
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if scaler.is_enabled():
        if clip_norm:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(trained, clip_norm)
        scaler.step(optimizer)
        scaler.update()
        return torch.ones((), dtype=torch.bool, device=optimizer.param_groups[0]["params"][0].device)
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    finite = torch.isfinite(whole(norm))
    if clip_norm:
        torch.nn.utils.clip_grads_with_norm_(trained, clip_norm, norm)
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # how a loss scaler tells fused optimizers
    optimizer.step()
    return finite


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
