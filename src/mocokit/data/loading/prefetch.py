"""The next batch on its way to the device, and augmented there, while this one is trained on."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mocokit.data.batch import ViewBatch

A = TypeVar("A")
B = TypeVar("B")


def on_device(batches: Iterable[ViewBatch], device: torch.device) -> Iterator[ViewBatch]:
    """The same batches, ready on `device`; what was left to the device is done there.

    On a GPU a thread copies and augments the next batch on a stream of its own while the reader trains on this one; the
    reader's thread, which must launch a thousand kernels a step, does none of it. On the CPU each batch is finished
    when it is asked for.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device).augmented()
        return
    staging = Staging(device)
    for batch, ready in Ahead(batches, staging.move):
        yield _handed_over(batch, ready)


class Ahead(Generic[A, B]):
    """`work` done on each item by a thread, one result ahead of the reader.

    Args:
        items: Iterated by the thread; an exception that they or `work` raise is raised by the reader's `next`.
        work: What is done to an item.

    """

    def __init__(self, items: Iterable[A], work: Callable[[A], B]) -> None:
        self._items = iter(items)  # the loader's processes are started by the reader's thread
        self._work = work
        self._done: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=1)
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[B]:
        thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        thread.start()
        try:
            while True:
                good, result = self._done.get()
                if not good:
                    if isinstance(result, BaseException):
                        raise result
                    return
                yield result
        finally:
            self._closed.set()
            thread.join()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._hand(good=True, result=self._work(item)):
                    return
            self._hand(good=False, result=None)
        except BaseException as error:  # noqa: BLE001, the reader raises it
            self._hand(good=False, result=error)

    def _hand(self, *, good: bool, result: object) -> bool:
        """Put the result where the reader finds it; False when the reader is gone."""
        while not self._closed.is_set():
            try:
                self._done.put((good, result), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


class Staging:
    """Copies batches to a GPU through page-locked memory of its own: two batches' worth, however many are loaded ahead.

    Locking pages is slow and stalls the GPU's driver; torch's loader locks anew for each batch that workers are ahead.

    Args:
        device: The GPU.

    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._slots = [_Slot(), _Slot()]

    def move(self, batch: ViewBatch) -> tuple[ViewBatch, torch.cuda.Event]:
        """The batch, finished on the device once the event has come."""
        slot = self._slots[0]
        self._slots.reverse()
        slot.wait()
        params = None if batch.params is None else tuple(params.pin_memory() for params in batch.params)
        staged: dict[str, Any] = {name: slot.hold(name, tensor) for name, tensor in batch.tensors().items()}
        with torch.cuda.stream(self.stream):
            moved = replace(batch, params=params, **staged).to(self.device)
            slot.copied = self.stream.record_event()
            return moved.augmented(), self.stream.record_event()


class _Slot:
    """Page-locked memory that one batch at a time is copied through."""

    def __init__(self) -> None:
        self.copied: torch.cuda.Event | None = None
        self._memory: dict[str, Tensor] = {}

    def wait(self) -> None:
        """Until the batch before is on the device."""
        if self.copied is not None:
            self.copied.synchronize()

    def hold(self, name: str, tensor: Tensor) -> Tensor:
        """A page-locked copy, laid out alike."""
        memory = self._memory.get(name)
        if memory is None or memory.shape != tensor.shape or memory.stride() != tensor.stride():
            memory = self._memory[name] = torch.empty_like(tensor, pin_memory=True)
        return memory.copy_(tensor)


def _handed_over(batch: ViewBatch, ready: torch.cuda.Event) -> ViewBatch:
    """Make the reader's stream wait for the batch, and the batch's memory wait for the reader's stream."""
    reader = torch.cuda.current_stream(batch.query.device)
    reader.wait_event(ready)
    for tensor in batch.tensors().values():
        tensor.record_stream(reader)
    return batch
