"""The optimizers of the papers."""

from collections.abc import Iterable

import torch
from torch import nn

from mocokit.engine.lars import Lars


def build_sgd(module: nn.Module, *, lr: float, sgd_momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD on all parameters that take a gradient, weight decay on every one of them, BatchNorm and biases too.

    So does the official code (moco/main_moco.py); many reimplementations exempt BatchNorm and are off by that.
    """
    return torch.optim.SGD(_trained(module), lr=lr, momentum=sgd_momentum, weight_decay=weight_decay, fused=True)


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
                _trained(module), lr=lr, momentum=sgd_momentum, weight_decay=weight_decay,
                trust_coefficient=trust_coefficient, lr_in_momentum=name == "lars-classic",
            )  # fmt: skip
        case "adamw":
            return torch.optim.AdamW(_trained(module), lr=lr, weight_decay=weight_decay, fused=True)
    raise ValueError(f"optim.name={name!r}: unknown; choose sgd, lars, lars-classic or adamw")


def _trained(module: nn.Module) -> Iterable[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
