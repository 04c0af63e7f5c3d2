"""MoCo v1 and v2: contrast each query with its key and a queue of past keys.

Order of operations follows facebookresearch/moco@3b42c2a moco/builder.py (MIT) and MoCo v1 Algorithm 1; differs in:
the batch is scored before it is enqueued, and enqueued after the optimizer step, so that the queue needs no clone
and a current key can never be a negative. The golden traces prove that the numbers are the same.

Shapes: B global batch, n rows of it on this rank, C embedding dimension, K queue size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mocokit.losses import PLAIN, InfoNce, NegativeTerm, info_nce, row_metrics
from mocokit.methods.group_forward import GroupForward, ShuffleOrder, cat_rows, require_temperature, unshuffle
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.methods.leak import bn_leak
from mocokit.methods.local_crops import embed_crops, image_losses
from mocokit.methods.momentum import copy_for_keys, momentum_update
from mocokit.methods.queue import KeyQueue
from mocokit.nets.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class MoCoBatch:
    """What one global batch needs between `prepare` and `remember`."""

    queries: list[Tensor]
    """(n, 3, H, W) this rank's query views; when symmetric, the key views second."""
    keys: list[Tensor]
    """(B, C) keys of the whole batch that belong to each of `queries`, in batch order."""
    image_ids: Tensor
    """(B,) image index of each row of the whole batch."""
    local: Tensor | None
    """(n, V, 3, s, s) local crops of this rank's images."""


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
        symmetric: Add the loss of the views with their roles exchanged, as the official CIFAR notebook can; both ways
            share the step's permutation, and both views' keys enter the queue.
        seed: Seed of the queue's first rows.
        term: How negatives enter the loss.

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
        symmetric: bool = False,
        seed: int = 0,
        term: NegativeTerm = PLAIN,
    ) -> None:
        super().__init__()
        require_temperature(temperature)
        if not 0 <= key_momentum <= 1:
            raise ValueError(f"method.key_momentum={key_momentum}: must be in 0..1; the papers use 0.999")
        self.encoder_q = encoder_q
        self.encoder_k = copy_for_keys(encoder_q)
        self.queue = KeyQueue(queue_size, dim, seed=seed)
        self.pixels = pixels or nn.Identity()
        self.layout = layout
        self.forwards = GroupForward(layout, self.pixels)
        self.temperature = temperature
        self.key_momentum = key_momentum
        self.symmetric = symmetric
        self.shuffle_order = shuffle_order
        self.mask_same_image = mask_same_image
        self.term = term
        self.chance_loss = term.chance_loss(queue_size) * (2 if symmetric else 1)
        self._batch: MoCoBatch | None = None
        self.row_metrics: dict[str, Tensor] = {}
        """(n,) values of each row of the last batch, on this rank; no gradient."""

    @torch.no_grad()
    def prepare(self, query: Tensor, key: Tensor, image_ids: Tensor, step: int, local: Tensor | None = None) -> None:
        """All that needs no gradient: the momentum update, then the keys.

        Args:
            query: (n, 3, H, W) this rank's rows of the query views.
            key: (n, 3, H, W) the key views of the same images.
            image_ids: (n,) index of each image in the data set.
            step: Counter that the shuffle is drawn from.
            local: (n, V, 3, s, s) smaller crops of the same images, further queries of their keys (local_crops.py).

        """
        momentum_update(self.encoder_k, self.encoder_q, self.key_momentum)
        size = self.layout.batch_size_of(len(query))
        order = None if self.shuffle_order is None else self.shuffle_order(step, size)  # (B,)
        queries, key_views = ([query, key], [key, query]) if self.symmetric else ([query], [key])
        slots = [self.forwards.run_all(self.encoder_k, self.forwards.shuffle(views, order)) for views in key_views]
        keys = [unshuffle(self.forwards.gather(rows), order) for rows in slots]  # (B, C), row i is that of image i
        ids = self.forwards.gather(image_ids)
        self._batch = MoCoBatch(queries=queries, keys=keys, image_ids=ids, local=local)

    def micro_losses(self) -> Iterator[Tensor]:
        """One scalar a micro-batch; their sum over micro-batches and ranks is the mean loss of the global batch."""
        batch = self._current_batch()
        size = len(batch.image_ids)
        metrics = list[dict[str, Tensor]]()
        for micro in self.layout.micro_batches(size):
            rows = [self.forwards.run(self.encoder_q, views, micro) for views in batch.queries]  # (micro rows, C)
            crops = embed_crops(self.forwards, self.encoder_q, batch.local, micro)
            # Scores are taken in float32 at least: q . k / T in bfloat16 would be off by up to 0.02.
            with torch.autocast(rows[0].device.type, enabled=False):
                ways = [self._contrast(q, keys, micro) for q, keys in zip(rows, batch.keys, strict=True)]
                of_crops = [[self._contrast(crop, keys, micro) for keys in batch.keys] for crop in crops]
                losses = image_losses([ways, *of_crops])
                metrics.append(self._row_metrics(ways, losses, rows[0].detach(), micro))
            yield losses.sum() / size
        self.row_metrics = cat_rows(metrics)

    def _contrast(self, q: Tensor, keys: Tensor, micro: MicroBatch) -> InfoNce:
        start = self.layout.own_rows(len(keys)).start
        queries = self.encoder_q.queries_per_image
        rows = slice(start + micro.rows.start, start + micro.rows.stop)  # of the batch
        positives = keys[rows].repeat_interleave(queries, dim=0)  # that of each query
        ids = self._current_batch().image_ids[rows].repeat_interleave(queries) if self.mask_same_image else None
        nce = info_nce(
            q,
            positives,
            self.queue.negatives,
            temperature=self.temperature,
            term=self.term,
            ids=ids,
            negative_ids=self.queue.image_ids if self.mask_same_image else None,
        )
        return nce.per_image(queries)

    def _row_metrics(self, ways: list[InfoNce], losses: Tensor, q: Tensor, micro: MicroBatch) -> dict[str, Tensor]:
        keys = self._current_batch().keys[0]
        of_images = q.unflatten(0, (-1, self.encoder_q.queries_per_image)).mean(dim=1)  # (micro rows, C)
        leak = bn_leak(
            of_images,
            keys,
            ways[0].positive_similarity,
            self.queue.newest(len(keys)),
            first_row=self.layout.own_rows(len(keys)).start + micro.rows.start,
            rows_per_group=self.layout.rows_per_group(len(keys)),
        )
        metrics = row_metrics(ways, losses, term=self.term)
        return {**metrics, "bn_leak": leak, "masked_negatives": ways[0].num_masked}

    def remember(self) -> None:
        """Enqueue the batch's keys; call after the optimizer step."""
        batch = self._current_batch()
        for keys in reversed(batch.keys):
            self.queue.enqueue(keys, batch.image_ids)
        self._batch = None

    def gauges(self) -> dict[str, float]:
        """Numbers of the method's own state for a log line."""
        return {"queue_fill": self.queue.fill}

    def _current_batch(self) -> MoCoBatch:
        assert self._batch is not None, "call prepare() first"
        return self._batch
