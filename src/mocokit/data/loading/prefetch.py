"""Copy the next batch to the device and finish its augmentation there, during the step on the current batch."""

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
    """Yield the batches on `device`, with their augmentation finished there.

    On a GPU, a thread copies and augments the next batch on a stream of its own during the step. The main thread, which
    launches about a thousand kernels per step, does none of that work. On the CPU, each batch is finished on request.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device).augmented()
        return
    staging = Staging(device)
    # A new thread's current device is GPU 0, on which each rank would then open a context of half a gigabyte.
    for batch, ready in BackgroundMap(batches, staging.move, prepare=lambda: torch.cuda.set_device(device)):
        yield _synchronize(batch, ready)


class BackgroundMap(Generic[A, B]):
    """Results of `work` for each item, computed by a thread that is one result ahead of the consumer.

    Args:
        items: Iterated in the thread. An exception of `items` or `work` is raised by the consumer's `next`.
        work: Function to apply to each item.
        prepare: Called once in the thread, before the first item.

    """

    def __init__(
        self, items: Iterable[A], work: Callable[[A], B], *, prepare: Callable[[], object] = lambda: None
    ) -> None:
        self._items = iter(items)  # here, so that the loader starts its processes in this thread
        self._work = work
        self._prepare = prepare
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
            self._prepare()
            for item in self._items:
                if not self._put(good=True, result=self._work(item)):
                    return
            self._put(good=False, result=None)
        except BaseException as error:  # noqa: BLE001, the consumer's thread raises it
            self._put(good=False, result=error)

    def _put(self, *, good: bool, result: object) -> bool:
        """Queue a result (`good`), an error or the end (None); return False if the consumer is gone."""
        while not self._closed.is_set():
            try:
                self._done.put((good, result), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


class Staging:
    """Copies batches to a GPU through two page-locked buffers that are reused.

    Locking pages is slow and stalls the GPU's driver. torch's loader with `pin_memory` locks new pages for each batch
    that workers are ahead; here the number of locked buffers does not depend on the number of workers.

    Args:
        device: The GPU.

    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._buffers = [_Buffer(), _Buffer()]

    def move(self, batch: ViewBatch) -> tuple[ViewBatch, torch.cuda.Event]:
        """Return the batch on the device, and the event after which its pixels are valid."""
        buffer = self._buffers[0]
        self._buffers.reverse()
        buffer.wait()
        params = None if batch.params is None else tuple(params.pin_memory() for params in batch.params)
        staged: dict[str, Any] = {name: buffer.copy_in(name, tensor) for name, tensor in batch.tensors().items()}
        with torch.cuda.stream(self.stream):
            moved = replace(batch, params=params, **staged).to(self.device)
            buffer.copied = self.stream.record_event()
            return moved.augmented(), self.stream.record_event()


class _Buffer:
    """Page-locked memory for one batch at a time."""

    def __init__(self) -> None:
        self.copied: torch.cuda.Event | None = None
        self._memory: dict[str, Tensor] = {}

    def wait(self) -> None:
        """Wait until the previous batch in this buffer is on the device."""
        if self.copied is not None:
            self.copied.synchronize()

    def copy_in(self, name: str, tensor: Tensor) -> Tensor:
        """Return a page-locked copy with the same strides; its memory is reused for the next batch."""
        memory = self._memory.get(name)
        if memory is None or memory.shape != tensor.shape or memory.stride() != tensor.stride():
            memory = self._memory[name] = torch.empty_like(tensor, pin_memory=True)
        return memory.copy_(tensor)


def _synchronize(batch: ViewBatch, ready: torch.cuda.Event) -> ViewBatch:
    """Make the consumer's stream wait for the batch.

    `record_stream` keeps torch from reusing the batch's memory, which belongs to the copying stream, before the
    consumer's stream is done with it.
    """
    consumer = torch.cuda.current_stream(batch.query.device)
    consumer.wait_event(ready)
    for tensor in batch.tensors().values():
        tensor.record_stream(consumer)
    return batch
