"""Collectives: exchange of tensors and small objects between ranks. A single process gets its own values back.

Each collective goes through `_collective`, which tells the watchdog (watchdog.py) that this rank has arrived, and
turns the error of a broken connection into one that says what to do.

Shapes: R ranks; B rows of the global batch; counts[r] of them on rank r.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mocokit.distributed.watchdog import RESUME, RankWatch, time_limit

T = TypeVar("T")

RANK_TIMEOUT_S = 600.0
"""Default time that ranks wait for a missing rank."""

ALONE_TIMEOUT_S = 3600.0
"""Default time that ranks wait for a rank in `work_alone`."""

STORE_TIMEOUT_S = 10.0
"""Time that one request to the launcher's store may take."""

_watches: list[RankWatch] = []
"""The watchdog of the open session; empty without one."""


def rank() -> int:
    """Return the global rank; 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks; 1 in a single process."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return True on rank 0, which writes the files and talks to the user."""
    return rank() == 0


def local_rank() -> int:
    """Return the rank within this machine, from torchrun's environment; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def session(
    device_type: str,
    *,
    rank_timeout_s: float = RANK_TIMEOUT_S,
    alone_timeout_s: float = ALONE_TIMEOUT_S,
    advice: str = RESUME,
) -> Iterator[None]:
    """Context manager that opens the process group and its watchdog if torchrun started us; else it does nothing.

    If a rank does not arrive at a collective within `rank_timeout_s`, all other ranks end with a message that names
    it. A rank inside `work_alone` has `alone_timeout_s` instead. `advice` ends the messages about other ranks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    # CPU tensors (stop flags, row counts) always travel by gloo, so that no decision waits for the GPU.
    backends = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    with time_limit(max(rank_timeout_s, RANK_TIMEOUT_S), "not all ranks came to the start"):
        # The watchdog decides first, because it knows which rank is missing and whether that rank may take longer. It
        # sees where the host waits; a host that waits for a GPU that waits for a rank is left to NCCL's own timeout.
        _open_group(backends, timedelta(seconds=rank_timeout_s + alone_timeout_s))
        # A second connection to the store: the group's own is blocked while the group waits.
        store = dist.TCPStore(  # type: ignore[attr-defined]
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
            advice=advice,
        )
    )
    try:
        yield
    except BaseException:
        _watches.pop().close()
        if device_type != "cuda":  # NCCL would wait here for the other ranks, and their errors would come first
            dist.destroy_process_group()
        raise
    _watches.pop().close()
    dist.destroy_process_group()


def _open_group(backends: str, timeout: timedelta) -> None:
    """Open the process group, under names of its own for each restart by torchrun.

    torchrun's store outlives a restart (`--max-restarts`). torch 2.14 would read the addresses there that the ranks of
    the last attempt left, and fail to connect to them.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # rank 0 makes the store
        dist.init_process_group(backends, timeout=timeout)
        return
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        backends,
        store=dist.PrefixStore(f"mocokit/attempt/{attempt}", store),  # type: ignore[attr-defined]
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timeout,
    )


@contextlib.contextmanager
def _collective(*, computes: bool = False) -> Iterator[None]:
    """Context manager for one collective: the watchdog counts it, and a lost connection raises ConnectionError.

    Args:
        computes: True if the block also computes, so that a RuntimeError may have another cause, such as memory.
            Only errors of torch.distributed and gloo are then taken for a lost connection.

    """
    try:
        with _watches[-1].in_collective() if _watches else contextlib.nullcontext():
            yield
    except RuntimeError as error:
        if computes and not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        # gloo: "[.../pair.cc:545] Read error [10.0.0.2]:26340: Connection reset by peer. <advice>"; keep the middle.
        reason = str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0]
        advice = _watches[-1].advice if _watches else RESUME
        raise ConnectionError(
            f"another rank has ended, or its machine is gone ({reason}); its own message says why; {advice}"
        ) from error


def together() -> contextlib.AbstractContextManager[None]:
    """Return the context manager for code that computes and issues collectives, such as a backward pass under DDP."""
    return _collective(computes=True)


def work_alone() -> contextlib.AbstractContextManager[None]:
    """Return the context manager for long work of one rank while the others wait, up to `alone_timeout_s`."""
    return _watches[-1].working_alone() if _watches else contextlib.nullcontext()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise sum of `values` over all ranks, as a new tensor of the same shape.

    One all-reduce: each rank sends and receives about twice the bytes of `values`.
    """
    total = values.detach().clone()
    if dist.is_initialized():
        with _collective():
            dist.all_reduce(total)
    return total


def any_rank(flag: bool) -> bool:
    """Return True if `flag` is set on at least one rank; the answer is the same on all ranks. Sends 8 bytes."""
    if not dist.is_initialized():
        return flag
    return bool(sum_over_ranks(torch.tensor([int(flag)])).item())


def all_gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Return the rows of all ranks, in rank order; no gradient.

    Each rank receives (R - 1) * max(counts) rows: all_gather needs equal parts, so shorter ones are padded.

    Args:
        rows: (counts[rank], ...) this rank's rows.
        counts: Rows on each rank; ranks may hold different numbers.

    Returns:
        (sum(counts), ...) on every rank.

    """
    if not dist.is_initialized():
        return rows
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))  # (max(counts), ...)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]  # R of (max(counts), ...)
    with _collective():
        dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])  # (B, ...)


def gather_rows_on_main(rows: Tensor, counts: list[int]) -> Tensor | None:
    """Return the rows of all ranks, in rank order, on the main rank; None on the others.

    The main rank receives each part into its place in the result, so it needs no second copy of the rows.

    Args:
        rows: (counts[rank], ...) this rank's rows, on the CPU.
        counts: Rows on each rank; ranks may hold different numbers.

    Returns:
        (sum(counts), ...) on the main rank.

    """
    if not dist.is_initialized():
        return rows
    gathered = rows.new_empty((sum(counts), *rows.shape[1:])) if is_main() else None  # (B, ...)
    with _collective():
        if gathered is None:
            if len(rows):
                dist.send(rows.contiguous(), 0)
            return None
        for number, part in enumerate(gathered.split(counts)):
            if number == 0:
                part.copy_(rows)
            elif len(part):
                dist.recv(part, number)
    return gathered


def rows_from_main(rows: Tensor | None) -> Tensor:
    """Return the main rank's rows, on the CPU, to all ranks; the others give None."""
    if not dist.is_initialized():
        assert rows is not None, "the main rank has the rows"
        return rows
    shape, dtype = all_gather_objects(None if rows is None else (tuple(rows.shape), rows.dtype))[0] or ((), None)
    rows = torch.empty(shape, dtype=dtype) if rows is None else rows.contiguous()
    if rows.numel():
        with _collective():
            dist.broadcast(rows, 0)
    return rows


def permute_rows(rows: Tensor, counts: list[int], order: Tensor) -> Tensor:
    """Permute the global batch over all ranks and return this rank's rows of the result; no gradient.

    One all-to-all: a row goes only to the rank that needs it. So a rank receives counts[rank] rows however many ranks
    there are, where an all-gather would bring all B. The paper's 256 key images of 224 px in uint8 on 8 ranks are
    32 rows of 150,528 bytes: 4.8 MB a rank instead of 38.5 MB.

    Args:
        rows: (counts[rank], ...) this rank's rows.
        counts: Rows on each rank.
        order: (B,) on the CPU, the same on all ranks: slot i of the result takes row order[i].

    Returns:
        (counts[rank], ...)

    """
    if not dist.is_initialized():
        return rows[order.to(rows.device, non_blocking=True)]
    me = rank()
    # All index arithmetic is on the CPU: `order` is known there, and the split sizes must be Python integers.
    ranks = torch.arange(len(counts))
    holder = ranks.repeat_interleave(torch.tensor(counts))  # (B,) rank that holds each row
    wanted = order.split(counts)  # R of (counts[r],): global rows that rank r's slots take
    to_send = [slots[holder[slots] == me] - sum(counts[:me]) for slots in wanted]  # R of own local rows
    sources = holder[wanted[me]]  # (counts[me],) rank that each of my slots is filled from
    sent = rows[torch.cat(to_send).to(rows.device, non_blocking=True)].contiguous()  # (counts[me], ...) by receiver
    received = torch.empty_like(rows, memory_format=torch.contiguous_format)  # (counts[me], ...) by sender
    with _collective():
        dist.all_to_all_single(
            received, sent, torch.bincount(sources, minlength=len(counts)).tolist(), [len(slots) for slots in to_send]
        )
    # The rows came sorted by sender (stable: in slot order within a sender). The stable argsort says which slot each
    # received row belongs to; the argsort of that is the inverse: which received row each slot takes.
    return received[torch.argsort(torch.argsort(sources, stable=True)).to(rows.device, non_blocking=True)]


def on_main(action: Callable[[], object]) -> None:
    """Run `action` on the main rank while the others wait.

    Raises:
        ValueError: `action` raised ValueError or OSError; on the main rank that error itself, on the others a
            ValueError with its message.

    """
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


def from_main(make: Callable[[], T]) -> T:
    """Return what `make` returns on the main rank, to all ranks; for small objects, which are pickled.

    Raises:
        ValueError: As `on_main`.

    """
    made = list[T]()
    on_main(lambda: made.append(make()))
    return all_gather_objects(made)[0][0]


def on_every_rank(make: Callable[[], T]) -> T:
    """Return what `make` returns on this rank, as soon as it has succeeded on all; it must not call collectives.

    Raises:
        ValueError: `make` raised ValueError or OSError on a rank; on that rank that error itself, on the others a
            ValueError with the message of the first such rank.

    """
    made = list[T]()
    failure: Exception | None = None
    try:
        made.append(make())
    except (ValueError, OSError) as error:
        failure = error
    messages = all_gather_objects(failure and str(failure))
    if failure is not None:
        raise failure
    for number, message in enumerate(messages):
        if message is not None:
            raise ValueError(f"rank {number}: {message}")
    return made[0]


def max_over_ranks(value: int) -> int:
    """Return the largest `value` of all ranks. Sends 8 bytes."""
    if not dist.is_initialized():
        return value
    largest = torch.tensor([value])
    with _collective():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest.item())


def all_gather_objects(value: T) -> list[T]:
    """Return `value` of every rank, in rank order; for small objects, which are pickled."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    with _collective():
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        with _collective():
            dist.barrier()


def started_as_main() -> bool:
    """Return True if torchrun gave this process rank 0; works before and after `session` too."""
    return os.environ.get("RANK", "0") == "0"
