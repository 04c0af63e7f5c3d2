"""Add up the gradients of a step's micro-batches over ranks: one process, whole parameters, or sharded ones.

Losses are divided by the global batch before their backward pass, so the sum over ranks (not the mean) is the gradient,
also when ranks hold different numbers of groups.
"""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from mocokit.distributed import collectives
from mocokit.distributed.fsdp import sharded_modules

Loss = Callable[..., tuple[Tensor, Any]]
"""A micro-batch's share of the loss, a scalar to backpropagate, and whatever else is wanted of it."""


class GradientSum:
    """Forward and backward passes of a step in one process: there is nothing to add up.

    A step calls `forward` and `backward` for each micro-batch in turn. After the backward pass of the last one,
    gradients are those of all ranks.
    """

    def forward(self, loss: Loss, *args: Any, is_last: bool) -> tuple[Tensor, Any]:
        """Return `loss(*args)`; `is_last` is True for the step's last micro-batch."""
        return loss(*args)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`."""
        torch.autograd.backward(loss)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for forward passes in which this rank may wait for others; here none does."""
        return contextlib.nullcontext()


class BucketedGradientSum(GradientSum):
    """Adds up gradients over ranks while the step's last backward pass still runs: torch's DistributedDataParallel.

    Gradients are views of the buckets that travel (25 MB each by torch's default), so they are not copied. DDP sums
    gradients only after a forward pass of the module that it wraps, whatever was computed before. So it wraps
    `_LossCall`, whose forward pass is the loss.

    Args:
        parameters: The same ones on all ranks. Those that take no gradient are left out; every other one must take one
            in each step.

    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        with collectives.together():
            self._ddp = DistributedDataParallel(_LossCall(parameters), gradient_as_bucket_view=True)
            self._ddp.register_comm_hook(None, _sum_bucket)
            self._settle_buckets(list(self._ddp.parameters()))
        self._is_last = False

    def _settle_buckets(self, trained: list[nn.Parameter]) -> None:
        """Take two empty steps: DDP rebuilds its buckets after a first step.

        If the first step were a real one, a resumed run would add up gradients in another order than the original run,
        and differ from it in the last bits.
        """

        def no_loss() -> tuple[Tensor, None]:
            return torch.stack([parameter.sum().float() * 0 for parameter in trained]).sum(), None

        for _ in range(2):
            self._ddp(no_loss)[0].backward()
            for parameter in trained:
                parameter.grad = None

    def forward(self, loss: Loss, *args: Any, is_last: bool) -> tuple[Tensor, Any]:
        """Return `loss(*args)`; gradients travel during the backward pass of the last micro-batch only."""
        self._is_last = is_last
        with contextlib.nullcontext() if is_last else self._ddp.no_sync():
            result: tuple[Tensor, Any] = self._ddp(loss, *args)
        return result

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`; the step's last call waits for the other ranks'."""
        with collectives.together() if self._is_last else contextlib.nullcontext():
            super().backward(loss)


class _LossCall(nn.Module):
    """Calls a loss as its forward pass, so that DistributedDataParallel sees the parameters at work."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameter for parameter in parameters if parameter.requires_grad)

    def forward(self, loss: Loss, *args: Any) -> tuple[Tensor, Any]:
        """Return `loss(*args)`."""
        return loss(*args)


def _sum_bucket(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Sum a bucket over ranks, where DDP by itself would average."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


class ShardedGradientSum(GradientSum):
    """Sums for a sharded method: FSDP2 adds up gradients and leaves each rank its part.

    Args:
        modules: The sharded modules.

    """

    def __init__(self, modules: Iterable[FSDPModule]) -> None:
        self._modules = list(modules)

    def forward(self, loss: Loss, *args: Any, is_last: bool) -> tuple[Tensor, Any]:
        """Return `loss(*args)`; gradients stay whole on each rank until the last micro-batch's backward pass."""
        for module in self._modules:
            module.set_requires_gradient_sync(is_last, recurse=False)
        with self.together():
            return loss(*args)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`; all ranks take part."""
        with self.together():
            super().backward(loss)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for forward passes: each one gathers parameters from all ranks."""
        return collectives.together()


def gradient_sum(method: nn.Module) -> GradientSum:
    """Return the way to add up the gradients of `method` that this process needs."""
    modules = sharded_modules(method)
    if modules:
        return ShardedGradientSum(modules)
    return BucketedGradientSum(method.parameters()) if dist.is_initialized() else GradientSum()
