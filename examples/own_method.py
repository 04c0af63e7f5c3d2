"""A method of your own in one file: MoCo without a queue. A query's negatives are the other keys of its batch.

mocokit pretrain moco-v2-small --method-from examples.own_method:SPEC --data my_photos/ --out runs/own
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mocokit.data.batch import ViewBatch
from mocokit.losses import in_batch_info_nce, row_metrics
from mocokit.methods.contract import Method, MethodInputs, MethodSettings, MethodSpec, Passes, Rows
from mocokit.methods.groups import MicroBatch
from mocokit.methods.momentum import copy_for_keys, momentum_update


class Queueless(Method[tuple[Tensor, Tensor]]):
    """Momentum keys, contrasted within the batch (B images, C numbers in an embedding)."""

    def __init__(self, *, key_momentum: float, global_batch_size: int, **shared: Any) -> None:
        super().__init__(**shared)
        self.encoder_k = copy_for_keys(self.encoder_q)
        self.key_momentum = key_momentum
        self.chance_loss = math.log(global_batch_size)

    @torch.no_grad()
    def prepare(self, views: ViewBatch, step: int) -> tuple[Tensor, Tensor]:
        """Move the key encoder, then embed the keys of the whole batch."""
        momentum_update(self.encoder_k, self.encoder_q, self.key_momentum)
        return views.query, self.forwards.embed_keys(self.encoder_k, views.key, None)  # (B, C)

    def loss(self, batch: tuple[Tensor, Tensor], micro: MicroBatch) -> tuple[Tensor, Rows]:
        """Contrast a micro-batch's queries with all keys."""
        query, keys = batch
        q = self.forwards.embed(self.encoder_q, query[micro.rows], micro)  # (m, C)
        rows = self.layout.batch_rows(micro, len(keys))
        positives = torch.arange(rows.start, rows.stop, device=q.device)
        contrast = in_batch_info_nce(q, keys, positives, temperature=self.temperature)
        return contrast.row_losses.sum() / len(keys), row_metrics([contrast], contrast.row_losses)


@dataclass(frozen=True, kw_only=True)
class QueuelessSettings(MethodSettings):
    """MoCo without a queue."""

    name: Literal["queueless"] = "queueless"
    key_momentum: float = 0.99
    """m of the key encoder's moving average."""


def build(settings: QueuelessSettings, inputs: MethodInputs) -> Queueless:
    """Return the method in its first state."""
    return Queueless(
        encoder_q=inputs.encoder_q,
        key_momentum=settings.key_momentum,
        global_batch_size=inputs.global_batch_size,
        **inputs.shared(settings),
    )


def passes(settings: QueuelessSettings) -> Passes:
    """Return what a step computes, for `mocokit plan`."""
    return Passes(trained_views=1, key_views=1, gathered_rows=1)


SPEC = MethodSpec(settings=QueuelessSettings, build=build, passes=passes)
