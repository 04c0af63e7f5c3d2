"""The optimizer of the papers."""

import torch
from torch import nn


def build_sgd(module: nn.Module, *, lr: float, sgd_momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD on all parameters that take a gradient, weight decay on every one of them, BatchNorm and biases too.

    So does the official code (moco/main_moco.py); many reimplementations exempt BatchNorm and are off by that.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.SGD(parameters, lr=lr, momentum=sgd_momentum, weight_decay=weight_decay, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
