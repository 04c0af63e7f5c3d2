"""The only file that speaks to torch.distributed; every function is true without a process group."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def rank() -> int:
    """Global rank; 0 when the program was not started by torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks; 1 when the program was not started by torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and speaks to the user."""
    return rank() == 0


def local_rank() -> int:
    """Rank within this machine, as torchrun says it; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def session(device_type: str) -> Iterator[None]:
    """Open the process group when torchrun started us, close it at the end; nothing for a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    # CPU tensors (stop flags, row counts) always travel by gloo, so that no decision waits for the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Elementwise sum of `values` over all ranks, as a new tensor of the same shape."""
    total = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set on at least one rank; all ranks get the same answer."""
    if not dist.is_initialized():
        return flag
    return bool(sum_over_ranks(torch.tensor([int(flag)])).item())


def all_gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Rows of all ranks in rank order, without gradient.

    Args:
        rows: (counts[rank], ...) this rank's rows.
        counts: Rows that each rank holds; ranks may hold different numbers.

    Returns:
        (sum(counts), ...) on every rank.

    """
    if not dist.is_initialized():
        return rows
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up each parameter's gradient over all ranks, in place.

    Losses are scaled by the global batch before `backward`, so the sum over ranks (not the mean) is the gradient,
    also when ranks hold different numbers of groups. One flat buffer an element type: one collective a step.
    """
    if not dist.is_initialized():
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:  # a rank without work still takes part
                parameter.grad = torch.zeros_like(parameter)
            by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_type.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(summed.view_as(gradient))


def raise_on_disagreement(what: str, text: str) -> None:
    """Raise ValueError on every rank when `text` is not the same on all ranks."""
    texts = all_gather_objects(text)
    odd = [number for number, other in enumerate(texts) if other != texts[0]]
    if odd:
        raise ValueError(f"{what}: ranks {odd} differ from rank 0; start every rank with the same command and files")


def max_over_ranks(value: int) -> int:
    """Largest `value` of all ranks."""
    if not dist.is_initialized():
        return value
    largest = torch.tensor([value])
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest.item())


def all_gather_objects(value: T) -> list[T]:
    """`value` of every rank, in rank order; for small picklable things."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def started_as_main() -> bool:
    """Whether torchrun gave this process rank 0, also before and after `session`."""
    return os.environ.get("RANK", "0") == "0"
