"""The next batch on its way to the device, and augmented there, while this one is trained on."""

from collections.abc import Iterable, Iterator

import torch

from mocokit.data.views import ViewBatch


def on_device(batches: Iterable[ViewBatch], device: torch.device) -> Iterator[ViewBatch]:
    """The same batches, ready on `device`; what was left to the device is done there.

    On a GPU a batch is copied and augmented on a stream of its own, one batch ahead of the reader. On the CPU each
    batch is finished when it is asked for.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device).augmented()
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[ViewBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            following = batch.to(device).augmented()
        if ahead is not None:
            yield _handed_over(*ahead)
        ahead = following, stream.record_event()
    if ahead is not None:
        yield _handed_over(*ahead)


def _handed_over(batch: ViewBatch, ready: torch.cuda.Event) -> ViewBatch:
    """Make the reader's stream wait for the batch, and the batch's memory wait for the reader's stream."""
    reader = torch.cuda.current_stream(batch.query.device)
    reader.wait_event(ready)
    for tensor in batch.tensors().values():
        tensor.record_stream(reader)
    return batch
