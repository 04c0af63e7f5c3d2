"""A batch of views, and what makes one.

Shapes: n rows of a batch, S image size; views (n, 3, S, S) uint8; V local crops an image, s their size.
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
    """An image that could not be used."""

    index: int
    name: str
    reason: str


Each = Callable[..., Iterable[Any]]
"""`map`, or that of an executor whose threads share a batch."""


class BatchMaker(Protocol[B_co]):
    """Makes whole batches: TwoViews, SingleViews, PlainViews, DetectionViews."""

    def make_batch(self, positions: Sequence[Any], each: Each) -> B_co:
        """The batch of the images at `positions`."""
        ...


@dataclass(frozen=True, kw_only=True)
class ViewBatch:
    """Two views, and perhaps local crops, of each image of (a rank's part of) a batch."""

    query: Tensor
    """(n, 3, S, S) uint8"""
    key: Tensor
    """(n, 3, S, S) uint8"""
    image_ids: Tensor
    """(n,) index of the image that was read, which for a bad image is its replacement."""
    bad: tuple[BadImage, ...] = ()
    local: Tensor | None = None
    """(n, V, 3, s, s) uint8; None: no local crops."""
    params: tuple[BatchParams, ...] | None = None
    """What remains to be done to query views, key views and local crops (n * V), only cropped yet; None: nothing."""

    def pin_memory(self) -> "ViewBatch":
        """The same batch in page-locked memory; called by torch's DataLoader."""
        return self._map(Tensor.pin_memory, BatchParams.pin_memory)

    def to(self, device: torch.device) -> "ViewBatch":
        """The same batch on `device`, copied without waiting when pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True), lambda params: params.to(device))

    def augmented(self) -> "ViewBatch":
        """The batch with all that remained to be done, done where the views are."""
        if self.params is None:
            return self
        of_query, of_key, *of_local = self.params
        local = self.local
        if local is not None:
            local = augment_batch(local.flatten(0, 1), of_local[0]).view_as(local)
        query = augment_batch(self.query, of_query)
        key = augment_batch(self.key, of_key)
        return replace(self, query=query, key=key, local=local, params=None)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors."""
        fields = {"query": self.query, "key": self.key, "image_ids": self.image_ids}
        return fields if self.local is None else {**fields, "local": self.local}

    def _map(self, move: Callable[[Tensor], Tensor], move_params: Callable[[BatchParams], BatchParams]) -> "ViewBatch":
        params = None if self.params is None else tuple(map(move_params, self.params))
        moved: dict[str, Any] = {name: move(tensor) for name, tensor in self.tensors().items()}
        return replace(self, params=params, **moved)


def empty_pixels(*shape: int) -> Tensor:
    """Uninitialised uint8; in a loader's worker in memory that the main process shares, which saves a copy."""
    size = math.prod(shape)
    storage = torch.UntypedStorage._new_shared(size) if get_worker_info() else torch.UntypedStorage(size)
    return torch.empty(0, dtype=torch.uint8).set_(cast(torch.UntypedStorage, storage)).view(shape)
