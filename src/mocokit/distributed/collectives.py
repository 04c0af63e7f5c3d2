"""What ranks tell each other, beside sharding.py and gradient_sum.py; all of it true without a process group."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mocokit.distributed.watchdog import RankWatch, limited

T = TypeVar("T")

RANK_TIMEOUT_S = 600.0
"""Time that ranks wait for one that does not come, unless said otherwise."""

ALONE_TIMEOUT_S = 3600.0
"""Time for which a rank may work alone meanwhile, unless said otherwise."""

STORE_TIMEOUT_S = 10.0

_watches: list[RankWatch] = []
"""The open session's."""


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
def session(
    device_type: str, *, rank_timeout_s: float = RANK_TIMEOUT_S, alone_timeout_s: float = ALONE_TIMEOUT_S
) -> Iterator[None]:
    """Open the process group when torchrun started us, close it at the end; nothing for a single process.

    A rank that does not come to a collective within `rank_timeout_s` ends all others, with a message that names it;
    one that is in `work_alone` within `alone_timeout_s`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    # CPU tensors (stop flags, row counts) always travel by gloo, so that no decision waits for the GPU.
    # The group itself waits for a day: RankWatch knows whom it waits for, and whether that is in order.
    backends = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    with limited(max(rank_timeout_s, RANK_TIMEOUT_S), "not all ranks came to the start"):
        dist.init_process_group(backends, timeout=timedelta(days=1))
        store = dist.TCPStore(  # type: ignore[attr-defined]  # its own: the group's connection is blocked while it waits
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=STORE_TIMEOUT_S),
        )
        generation = all_gather_objects(secrets.token_hex(8))[0]
    _watches.append(
        RankWatch(
            store,
            generation=generation,
            rank=rank(),
            world_size=world_size(),
            timeout_s=rank_timeout_s,
            alone_timeout_s=alone_timeout_s,
        )
    )
    try:
        yield
    finally:
        _watches.pop().close()
        dist.destroy_process_group()


@contextlib.contextmanager
def _arrive(*, computes: bool = False) -> Iterator[None]:
    """Around each collective, so that who does not come is found, and who is gone is said so.

    What also `computes` may fail for reasons of its own, such as memory.
    """
    try:
        with _watches[-1].arrive() if _watches else contextlib.nullcontext():
            yield
    except RuntimeError as error:
        if computes and not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0]  # without gloo's file and advice
        raise ConnectionError(
            f"another rank has ended, or its machine is gone ({reason}); its own message says why; the last "
            "checkpoint is good: continue with `mocokit resume`"
        ) from error


def together() -> contextlib.AbstractContextManager[None]:
    """Around what computes and holds collectives."""
    return _arrive(computes=True)


def work_alone() -> contextlib.AbstractContextManager[None]:
    """Around long work of one rank that the others wait for: for as long as the session's `alone_timeout_s`."""
    return _watches[-1].excuse() if _watches else contextlib.nullcontext()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Elementwise sum of `values` over all ranks, as a new tensor of the same shape."""
    total = values.detach().clone()
    if dist.is_initialized():
        with _arrive():
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
    with _arrive():
        dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def permute_rows(rows: Tensor, counts: list[int], order: Tensor) -> Tensor:
    """Rows of this rank once the batch that all ranks hold together is put in `order`; no gradient.

    A row goes to the one rank that needs it, so that a rank receives no more than it holds, whatever their number.

    Args:
        rows: (counts[rank], ...) this rank's rows.
        counts: Rows that each rank holds.
        order: (B,) in the host's memory, the same on all ranks: slot i takes row order[i].

    Returns:
        (counts[rank], ...)

    """
    if not dist.is_initialized():
        return rows[order.to(rows.device, non_blocking=True)]
    me = rank()
    numbers = torch.arange(len(counts))
    holder = numbers.repeat_interleave(torch.tensor(counts))  # (B,) rank of each row
    wanted = order.split(counts)  # rows that each rank's slots take
    to_send = [slots[holder[slots] == me] - sum(counts[:me]) for slots in wanted]
    sources = holder[wanted[me]]
    sent = rows[torch.cat(to_send).to(rows.device, non_blocking=True)].contiguous()
    received = torch.empty_like(rows, memory_format=torch.contiguous_format)
    with _arrive():
        dist.all_to_all_single(
            received, sent, torch.bincount(sources, minlength=len(counts)).tolist(), [len(slots) for slots in to_send]
        )
    return received[torch.argsort(torch.argsort(sources, stable=True)).to(rows.device, non_blocking=True)]


def on_main(action: Callable[[], object]) -> None:
    """Run `action` on the main rank while the others wait; what is wrong there is a ValueError on all of them."""
    failure: Exception | None = None
    if is_main():
        try:
            action()
        except (ValueError, OSError) as error:
            failure = error
    message = all_gather_objects(failure and str(failure))[0]
    if failure is not None:
        raise failure
    if message is not None:
        raise ValueError(message)


def max_over_ranks(value: int) -> int:
    """Largest `value` of all ranks."""
    if not dist.is_initialized():
        return value
    largest = torch.tensor([value])
    with _arrive():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest.item())


def all_gather_objects(value: T) -> list[T]:
    """`value` of every rank, in rank order; for small picklable things."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    with _arrive():
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        with _arrive():
            dist.barrier()


def started_as_main() -> bool:
    """Whether torchrun gave this process rank 0, also before and after `session`."""
    return os.environ.get("RANK", "0") == "0"
