"""Work that each machine does once, however many ranks it has: its first rank does it and sends the result."""

import os
import pickle
import socket
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from mocokit.distributed.collectives import (
    all_gather_objects,
    local_rank,
    rank,
    together,
    work_alone,
)

T = TypeVar("T")


def from_first_of_machine(make: Callable[[], T]) -> T:
    """Return what `make` returns on the first rank of each machine, to all ranks of that machine.

    The result is pickled and travels within the machine. The others wait for `make` as for any work of one rank alone.

    Raises:
        ValueError: `make` raised ValueError or OSError on some machine; on that rank the error itself, on the others a
            ValueError with its message.

    """
    if not dist.is_initialized():
        return make()
    made = list[T]()
    failure: Exception | None = None
    with work_alone():
        if local_rank() == 0:
            try:
                made.append(make())
            except (ValueError, OSError) as error:
                failure = error
    # The agent of torchrun counts too: two of them on one machine have a first rank each.
    machine = f"{socket.gethostname()} {os.environ.get('GROUP_RANK', '')}"
    told = all_gather_objects((machine, local_rank() == 0, failure and str(failure)))
    if failure is not None:
        raise failure
    message = next((message for *_, message in told if message is not None), None)
    if message is not None:
        raise ValueError(message)
    own = [number for number, (name, _, _) in enumerate(told) if name == machine]
    first = next(number for number in own if told[number][1])
    with together():
        return _share(made[0] if made else None, [number for number in own if number != first], first)


def _share(made: T | None, others: list[int], first: int) -> T:
    """Return the first rank's object: it sends the pickled bytes to each of the others, and their number before."""
    if rank() != first:
        size = torch.empty(1, dtype=torch.int64)
        dist.recv(size, first)
        received = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(received, first)
        obj: T = pickle.loads(received.numpy().data)
        return obj
    assert made is not None
    if others:
        sent = torch.frombuffer(bytearray(pickle.dumps(made, protocol=5)), dtype=torch.uint8)
        for other in others:
            dist.send(torch.tensor([len(sent)]), other)
            dist.send(sent, other)
    return made
