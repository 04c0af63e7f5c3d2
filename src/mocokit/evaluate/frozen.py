"""Prove that a frozen backbone stays frozen: no bit of its parameters and buffers changes."""

import contextlib
from collections.abc import Iterator

from torch import nn

from mocokit.engine.agreement import digest_tensors


class FrozenWeightsMovedError(RuntimeError):
    """A frozen parameter or BatchNorm statistic changed; the message names the first one."""


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Context manager that puts `module` in eval mode without gradients, and restores both settings afterwards.

    Raises:
        FrozenWeightsMovedError: A parameter or a buffer, such as a BatchNorm statistic, changed inside the context.

    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    before = digest_tensors(tensors)
    modes = [(part, part.training) for part in module.modules()]
    took_gradient = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, takes in took_gradient:
            parameter.requires_grad_(takes)
    after = digest_tensors({**dict(module.named_parameters()), **dict(module.named_buffers())})
    moved = [name for name in before if after.get(name) != before[name]]
    if moved:
        raise FrozenWeightsMovedError(f"{len(moved)} of {len(before)} frozen tensors changed, such as {moved[0]}")
