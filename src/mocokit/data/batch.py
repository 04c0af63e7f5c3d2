"""A batch of views, and the interface of the classes that make batches.

Shapes: n rows of a batch, S image size, V local crops per image, s their size; views are (n, 3, S, S) uint8.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mocokit.data.augment.batched import BatchParams, augment_batch

B_co = TypeVar("B_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that could not be read or decoded."""

    index: int
    name: str
    reason: str


Each = Callable[..., Iterable[Any]]
"""The built-in `map`, or the `map` of a thread pool, which makes the images of a batch in parallel."""


class BatchMaker(Protocol[B_co]):
    """A class that makes whole batches: TwoViews, SingleViews, PlainViews or DetectionViews."""

    def make_batch(self, positions: Sequence[Any], each: Each) -> B_co:
        """Return the batch of the images at `positions`; apply functions to rows with `each`."""
        ...


@dataclass(frozen=True, kw_only=True)
class ViewBatch:
    """Two views, and optionally local crops, of each image in a rank's part of a batch."""

    query: Tensor
    """(n, 3, S, S) uint8"""
    key: Tensor
    """(n, 3, S, S) uint8"""
    image_ids: Tensor
    """(n,) index of the image in each row; for a bad image, the index of its replacement."""
    bad: tuple[BadImage, ...] = ()
    """Bad images that were replaced."""
    local: Tensor | None = None
    """(n, V, 3, s, s) uint8; None without local crops."""
    params: tuple[BatchParams, ...] | None = None
    """Augmentation still to run on query views, key views and local crops (n * V rows); None if done."""

    def to(self, device: torch.device) -> "ViewBatch":
        """Return the batch on `device`; the copy is asynchronous if the batch is in page-locked memory."""
        params = None if self.params is None else tuple(params.to(device) for params in self.params)
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        return replace(self, params=params, **moved)

    def augmented(self) -> "ViewBatch":
        """Return the batch with the rest of the augmentation done, on the device that holds the views."""
        if self.params is None:
            return self
        query_params, key_params, *local_params = self.params
        local = self.local
        if local is not None:
            local = augment_batch(local.flatten(0, 1), local_params[0]).view_as(local)
        query = augment_batch(self.query, query_params)
        key = augment_batch(self.key, key_params)
        return replace(self, query=query, key=key, local=local, params=None)

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are tensors, by name."""
        fields = {"query": self.query, "key": self.key, "image_ids": self.image_ids}
        return fields if self.local is None else {**fields, "local": self.local}


def empty_pixels(*shape: int) -> Tensor:
    """Return an uninitialised uint8 tensor; in a loader's worker, in shared memory.

    torch moves a worker's tensors to shared memory to hand them over; this saves that copy.
    """
    size = math.prod(shape)
    storage = torch.UntypedStorage._new_shared(size) if get_worker_info() else torch.UntypedStorage(size)
    return torch.empty(0, dtype=torch.uint8).set_(cast(torch.UntypedStorage, storage)).view(shape)
