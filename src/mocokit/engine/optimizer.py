"""The optimizers of the papers, and an optimizer step that skips NaN and infinite gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mocokit.distributed.fsdp import full_tensor
from mocokit.engine.lars import Lars
from mocokit.settings import choose


def build_sgd(
    module: nn.Module, *, lr: float, sgd_momentum: float, weight_decay: float, constant_lr: nn.Module | None = None
) -> torch.optim.SGD:
    """Return SGD of all parameters that require a gradient, with weight decay on BatchNorm and biases too.

    So does the official code (moco/main_moco.py). Many reimplementations exempt BatchNorm and biases, and differ from
    the paper by that. The parameters of `constant_lr`, a part of `module`, keep the rate `lr` whatever `set_lr` says.
    """
    parameters = _trained(module)
    constant = _trained(constant_lr) if constant_lr is not None else []
    others = set(parameters) - set(constant)
    groups: list[dict[str, Any]] = [{"params": [p for p in parameters if p in others]}]
    if constant:
        groups.append({"params": constant, "constant_lr": lr})
    sgd = torch.optim.SGD(groups, lr=lr, momentum=sgd_momentum, weight_decay=weight_decay, fused=True)
    if sgd_momentum:
        # If the first step is skipped (a NaN gradient), torch would leave its momentum buffers uninitialised.
        for parameter in parameters:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _build_lars(
    module: nn.Module, lr: float, momentum: float, decay: float, trust: float, *, lr_in_momentum: bool
) -> Lars:
    return Lars(
        _trained(module),
        lr=lr,
        momentum=momentum,
        weight_decay=decay,
        trust_coefficient=trust,
        lr_in_momentum=lr_in_momentum,
    )


OPTIMIZERS: dict[str, Callable[[nn.Module, float, float, float, float, nn.Module | None], torch.optim.Optimizer]] = {
    # MoCo v1 and v2, Fast-MoCo
    "sgd": lambda module, lr, momentum, decay, trust, constant_lr: build_sgd(
        module, lr=lr, sgd_momentum=momentum, weight_decay=decay, constant_lr=constant_lr
    ),
    # MoCo v3 on ResNets
    "lars": lambda module, lr, momentum, decay, trust, constant_lr: _build_lars(
        module, lr, momentum, decay, trust, lr_in_momentum=False
    ),
    # SimCLR
    "lars-classic": lambda module, lr, momentum, decay, trust, constant_lr: _build_lars(
        module, lr, momentum, decay, trust, lr_in_momentum=True
    ),
    # MoCo v3 on ViTs: default betas, decay on all parameters
    "adamw": lambda module, lr, momentum, decay, trust, constant_lr: torch.optim.AdamW(
        _trained(module), lr=lr, weight_decay=decay, fused=True
    ),
}
"""Builders by name: (module, learning rate, momentum, weight decay, trust coefficient, part of the module whose rate is
constant) -> optimizer. Only sgd takes such a part; the settings ensure that no other is asked to."""


def build_optimizer(
    module: nn.Module,
    *,
    name: str,
    lr: float,
    sgd_momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    constant_lr: nn.Module | None = None,
) -> torch.optim.Optimizer:
    """Return an optimizer of all parameters of `module` that require a gradient.

    Args:
        module: The method.
        name: A key of OPTIMIZERS.
        lr: Learning rate.
        sgd_momentum: Momentum of SGD and LARS.
        weight_decay: Weight decay. LARS leaves out biases and BatchNorm; the others decay every parameter.
        trust_coefficient: Trust coefficient of LARS.
        constant_lr: Part of `module` whose rate stays `lr`; sgd only.

    Raises:
        ValueError: Unknown name.

    """
    build = choose("optim.name", name, OPTIMIZERS)
    return build(module, lr, sgd_momentum, weight_decay, trust_coefficient, constant_lr)


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def step_if_finite(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, clip_norm: float = 0.0) -> Tensor:
    """Take an optimizer step that changes nothing if a gradient is NaN or infinite; return True if all were finite.

    Neither the step nor the returned flag, a scalar on the device, makes the host wait for the device. The flag is
    the same on all ranks, because they all step with the same summed gradient.

    An enabled loss scaler (fp16) halves its scale after a step that was skipped. Some skipped steps are no error then:
    the scale starts too high on purpose. MeterBoard counts them.

    Args:
        optimizer: An optimizer of `build_optimizer`, or a fused one of torch's.
        scaler: The run's loss scaler, enabled or not.
        clip_norm: Scale the gradient, over all parameters, down to this norm if it is longer; 0: never.

    """
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if scaler.is_enabled():
        scaler.unscale_(optimizer)  # exact: the scale is a power of 2; finds bad gradients for the update below
    # One norm over all gradients serves both purposes: it is NaN or infinite if any entry is, and clipping needs it.
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    finite = torch.isfinite(full_tensor(norm))  # with FSDP2 the norm is sharded: one all-reduce of a scalar
    if clip_norm:
        torch.nn.utils.clip_grads_with_norm_(trained, clip_norm, norm)
    # A loss scaler sets this attribute to tell a fused optimizer, and our Lars, to skip the step on the device.
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    if scaler.is_enabled():
        scaler.update()
    return finite


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` for the next step, in all parameter groups but those with a constant rate."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("constant_lr", lr)
