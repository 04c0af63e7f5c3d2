"""MoCo v1 and v2: contrast each query with its key and a queue of past keys.

Order of operations follows facebookresearch/moco@3b42c2a moco/builder.py (MIT) and MoCo v1 Algorithm 1; differs in:
the batch is scored before it is enqueued, and enqueued after the optimizer step, so that the queue needs no clone
and a current key can never be a negative. The golden traces prove that the numbers are the same.

Shapes: B global batch, n rows of it on this rank, C embedding dimension, K queue size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mocokit import distributed
from mocokit.losses import InfoNce, info_nce
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.methods.momentum import copy_for_keys, momentum_update
from mocokit.methods.queue import KeyQueue
from mocokit.nets.encoder import Encoder
from mocokit.nets.grouped_batchnorm import batchnorm_groups

ShuffleOrder = Callable[[int, int], Tensor]
"""(step, B) -> (B,) permutation: slot i of the shuffled batch holds key view order[i]. The same on every rank."""


@dataclass(frozen=True, kw_only=True)
class MoCoBatch:
    """What one global batch needs between `prepare` and `remember`."""

    query: Tensor
    """(n, 3, H, W) this rank's query views."""
    own_ids: Tensor
    """(n,) image index of each of this rank's rows."""
    keys: Tensor
    """(B, C) keys of the whole batch, in batch order."""
    image_ids: Tensor
    """(B,) image index of each row of the whole batch."""


class MoCo(nn.Module):
    """Momentum contrast over one global batch: `prepare`, then each of `micro_losses`, then `remember`.

    Args:
        encoder_q: Query encoder; the key encoder starts as its copy and moves by momentum alone.
        dim: Embedding dimension C of `encoder_q`.
        queue_size: Number of negatives K.
        temperature: Softmax temperature T.
        key_momentum: m of the key encoder's moving average.
        layout: BatchNorm groups of the global batch, and the part that this rank computes.
        pixels: Module that turns views into what the encoders read; runs a micro-batch at a time.
        shuffle_order: Permutation of shuffling BN for each step; None: no shuffle (a BatchNorm leak, for study).
        mask_same_image: Leave out negatives that come from the query's own image.
        seed: Seed of the queue's first rows.

    """

    def __init__(
        self,
        encoder_q: Encoder,
        *,
        dim: int,
        queue_size: int,
        temperature: float,
        key_momentum: float,
        layout: GroupLayout,
        pixels: nn.Module | None = None,
        shuffle_order: ShuffleOrder | None = None,
        mask_same_image: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"method.temperature={temperature}: must be above 0; the papers use 0.07 and 0.2")
        if not 0 <= key_momentum <= 1:
            raise ValueError(f"method.key_momentum={key_momentum}: must be in 0..1; the papers use 0.999")
        self.encoder_q = encoder_q
        self.encoder_k = copy_for_keys(encoder_q)
        self.queue = KeyQueue(queue_size, dim, seed=seed)
        self.pixels = pixels or nn.Identity()
        self.temperature, self.key_momentum = temperature, key_momentum
        self.layout, self.shuffle_order, self.mask_same_image = layout, shuffle_order, mask_same_image
        self._batch: MoCoBatch | None = None
        self.row_metrics: dict[str, Tensor] = {}
        """(n,) values of each row of the last batch, on this rank; no gradient."""

    @torch.no_grad()
    def prepare(self, query: Tensor, key: Tensor, image_ids: Tensor, step: int) -> None:
        """Everything about the batch that needs no gradient: the momentum update, then the keys.

        Args:
            query: (n, 3, H, W) this rank's rows of the query views.
            key: (n, 3, H, W) the key views of the same images.
            image_ids: (n,) index of each image in the data set.
            step: Counter that the shuffle is drawn from.

        """
        momentum_update(self.encoder_k, self.encoder_q, self.key_momentum)
        counts = self._row_counts(len(query))
        order = None if self.shuffle_order is None else self.shuffle_order(step, sum(counts)).to(key.device)  # (B,)
        keys = distributed.all_gather_rows(self._encode_keys(key, counts, order), counts)  # (B, C), shuffled
        if order is not None:
            keys = keys[torch.argsort(order)]  # (B, C), row i is again the key of image i
        self._batch = MoCoBatch(
            query=query,
            own_ids=image_ids,
            keys=keys,
            image_ids=distributed.all_gather_rows(image_ids, counts),
        )

    def _row_counts(self, num_own_rows: int) -> list[int]:
        """Rows of each rank, worked out from this rank's own."""
        groups = len(self.layout.groups_of(self.layout.rank))
        return self.layout.row_counts(num_own_rows // groups * self.layout.bn_groups)

    def _encode_keys(self, key: Tensor, counts: list[int], order: Tensor | None) -> Tensor:
        """(n, C) keys of the slots of the shuffled batch that this rank computes."""
        if order is not None:
            views = distributed.all_gather_rows(key, counts)  # (B, 3, H, W); uint8: 38.5 MB at B 256, 224 px
            own = self.layout.own_rows(sum(counts))
            key = views[order[own.start : own.stop]]
        micro_batches = self.layout.micro_batches(sum(counts))
        return torch.cat([self._encode(self.encoder_k, key, micro) for micro in micro_batches])

    def _encode(self, encoder: nn.Module, views: Tensor, micro: MicroBatch) -> Tensor:
        with batchnorm_groups(encoder, micro.num_groups, updates_statistics=micro.has_group_0):
            rows: Tensor = encoder(self.pixels(views[micro.rows]))
        return rows

    def micro_losses(self) -> Iterator[Tensor]:
        """One scalar a micro-batch; their sum over micro-batches and ranks is the mean loss of the global batch."""
        batch = self._current_batch()
        own = self.layout.own_rows(len(batch.keys))
        k = batch.keys[own.start : own.stop]  # (n, C)
        row_metrics: list[dict[str, Tensor]] = []
        for micro in self.layout.micro_batches(len(batch.keys)):
            q = self._encode(self.encoder_q, batch.query, micro)  # (micro rows, C)
            # Scores are taken in float32 at least: q . k / T in bfloat16 would be off by up to 0.02.
            with torch.autocast(q.device.type, enabled=False):
                nce = info_nce(
                    q, k[micro.rows], self.queue.negatives, temperature=self.temperature,
                    ids=batch.own_ids[micro.rows] if self.mask_same_image else None,
                    negative_ids=self.queue.image_ids if self.mask_same_image else None,
                )  # fmt: skip
                row_metrics.append(self._row_metrics(nce, q, micro.rows))
            yield nce.row_losses.sum() / len(batch.keys)
        self.row_metrics = {name: torch.cat([metrics[name] for metrics in row_metrics]) for name in row_metrics[0]}

    @torch.no_grad()
    def _row_metrics(self, nce: InfoNce, q: Tensor, rows: slice) -> dict[str, Tensor]:
        """What a run is judged by, one value for each of the micro-batch's rows.

        `bn_leak` is how much nearer a query lies to the *other* keys of its own BatchNorm group than to the keys of
        the batch before, which are other images too and as fresh. It is 0 unless query and keys share something that
        is not in the image: the group's statistics. Shuffling BN exists to keep it at 0 (MoCo v1 sec. 3.3).
        """
        batch = self._current_batch()
        num_keys = len(batch.keys)
        group_rows = self.layout.rows_per_group(num_keys)
        groups = batch.keys.view(-1, group_rows, batch.keys.shape[1]).sum(dim=1)  # (G, C)
        first = self.layout.own_rows(num_keys).start + rows.start
        own_group = torch.arange(first, first + len(q), device=q.device) // group_rows
        others = ((q * groups[own_group]).sum(dim=1) - nce.positive_similarity) / (group_rows - 1)
        before = q @ self.queue.newest(num_keys).mean(dim=0)
        return {
            "loss": nce.row_losses.detach(),
            "contrast_acc": nce.correct,
            "positive_similarity": nce.positive_similarity,
            "negative_similarity": nce.negative_similarity,
            "bn_leak": others - before,
            "masked_negatives": nce.num_masked,
        }

    def remember(self) -> None:
        """Enqueue the batch's keys; call after the optimizer step."""
        batch = self._current_batch()
        self.queue.enqueue(batch.keys, batch.image_ids)
        self._batch = None

    def _current_batch(self) -> MoCoBatch:
        assert self._batch is not None, "call prepare() first"
        return self._batch
