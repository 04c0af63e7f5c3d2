"""Add up the gradients of a step's micro-batches over ranks: one process, whole parameters, or parts of them."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from mocokit.distributed import collectives
from mocokit.distributed.fsdp import sharded_modules


class GradientSum:
    """A step's losses on their way through backward, where there is one process: nothing to add up.

    Losses are scaled by the global batch before `backward`, so the sum over ranks (not the mean) is the gradient,
    also when ranks hold different numbers of groups.
    """

    def each(self, losses: Iterator[Tensor], count: int) -> Iterator[Tensor]:
        """The same losses, of which this rank has `count`; each has to go through `backward` before the next."""
        for number in range(1, count + 1):
            yield self._next(losses, is_last=number == count)
        if next(losses, None) is not None:
            raise AssertionError(f"more than {count} losses: the gradients of the others were not added up")

    def _next(self, losses: Iterator[Tensor], *, is_last: bool) -> Tensor:
        return next(losses)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients; after the step's last one they are those of all ranks."""
        torch.autograd.backward(loss)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Around forwards in which this rank may wait for others; here none."""
        return contextlib.nullcontext()


class BucketedGradientSum(GradientSum):
    """Adds up gradients over ranks while the last backward of a step still runs: torch's DistributedDataParallel.

    Gradients are views of the buckets that travel.

    Args:
        parameters: The same ones on all ranks; those that take no gradient are left out, every other takes one in
            each step.

    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        with collectives.together():
            self._ddp = DistributedDataParallel(_NextLoss(parameters), gradient_as_bucket_view=True)
            self._ddp.register_comm_hook(None, _sum_bucket)
            self._settle_buckets(list(self._ddp.parameters()))
        self._is_last = False

    def _settle_buckets(self, trained: list[nn.Parameter]) -> None:
        """DDP makes its buckets anew after a first step; were that a real one, a resumed run would add up otherwise."""
        for _ in range(2):
            nothing = torch.stack([parameter.sum().float() * 0 for parameter in trained]).sum()
            self._ddp(iter([nothing])).backward()
            for parameter in trained:
                parameter.grad = None

    def _next(self, losses: Iterator[Tensor], *, is_last: bool) -> Tensor:
        self._is_last = is_last
        with contextlib.nullcontext() if is_last else self._ddp.no_sync():
            loss: Tensor = self._ddp(losses)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients; those of the last one wait for the other ranks'."""
        with collectives.together() if self._is_last else contextlib.nullcontext():
            super().backward(loss)


class _NextLoss(nn.Module):
    """Takes the next loss as its forward, so that DistributedDataParallel sees the parameters at work."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameter for parameter in parameters if parameter.requires_grad)

    def forward(self, losses: Iterator[Tensor]) -> Tensor:
        """A scalar."""
        return next(losses)


def _sum_bucket(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


class ShardedGradientSum(GradientSum):
    """The same for a method that is split: FSDP2 adds up gradients, each rank's part on that rank alone.

    Args:
        modules: What is split.

    """

    def __init__(self, modules: Iterable[FSDPModule]) -> None:
        self._modules = list(modules)

    def _next(self, losses: Iterator[Tensor], *, is_last: bool) -> Tensor:
        for module in self._modules:
            module.set_requires_gradient_sync(is_last, recurse=False)  # whole until the last loss's backward
        with self.together():
            return next(losses)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients, a backward of all ranks."""
        with self.together():
            super().backward(loss)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Every forward is one of all ranks."""
        return collectives.together()


def gradient_sum(method: nn.Module) -> GradientSum:
    """What adds up the gradients of `method` over ranks."""
    if modules := sharded_modules(method):
        return ShardedGradientSum(modules)
    return BucketedGradientSum(method.parameters()) if dist.is_initialized() else GradientSum()
