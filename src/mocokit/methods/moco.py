"""MoCo v1 and v2: contrast each query with its key and a queue of past keys (MoCo v1 Algorithm 1).

Order of operations follows facebookresearch/moco@3b42c2a moco/builder.py (MIT); differs in: the batch is scored before
it is enqueued, and enqueued after the optimizer step. So the queue needs no clone (33.6 MB a step at K 65536), and a
current key can never be a negative. The golden traces prove that the numbers are the same.

Shapes: B global batch, n rows of it on this rank, m of a micro-batch, C embedding dimension, K queue size.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from mocokit.data.batch import ViewBatch
from mocokit.losses import PLAIN, InfoNce, NegativeTerm, info_nce, row_metrics
from mocokit.methods.contract import (
    Method,
    MethodInputs,
    MethodSpec,
    Passes,
    PatchSettings,
    Rows,
    RunFacts,
)
from mocokit.methods.group_forward import ShuffleOrder, seeded_shuffle
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.methods.leak import bn_leak, warn_of_shuffle
from mocokit.methods.local_crops import embed_crops, image_losses
from mocokit.methods.momentum import copy_for_keys, momentum_update
from mocokit.methods.queue import KeyQueue
from mocokit.nets.encoder import Encoder
from mocokit.settings import flag, require


@dataclass(frozen=True, kw_only=True)
class MoCoBatch:
    """One global batch between `prepare` and `remember`."""

    queries: list[Tensor]
    """(n, 3, H, W) query views of this rank; a symmetric loss has a second entry, the key views."""
    keys: list[Tensor]
    """(B, C) keys of the whole batch for each entry of `queries`, in batch order."""
    image_ids: Tensor
    """(B,) image index of each row of the whole batch."""
    local: Tensor | None
    """(n, V, 3, s, s) local crops of this rank's images."""


class MoCo(Method[MoCoBatch]):
    """Momentum contrast over one global batch.

    Args:
        encoder_q: Query encoder; the key encoder starts as its copy and moves by momentum alone.
        dim: Embedding dimension C of `encoder_q`.
        queue_size: Number of negatives K.
        temperature: Softmax temperature T.
        key_momentum: m of the key encoder's moving average.
        layout: BatchNorm groups of the global batch, and the part of them that this rank computes.
        pixels: Module that turns views into what the encoders read; None: the identity.
        shuffle_order: Permutation of shuffling BN for each step; None: no shuffle (a BatchNorm leak, for study).
        mask_same_image: Leave out negatives that come from the query's own image.
        symmetric: Add the loss of the views with their roles exchanged, as the official CIFAR notebook can. Both
            directions share the step's permutation, and the keys of both views enter the queue.
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
        super().__init__(encoder_q, temperature=temperature, layout=layout, pixels=pixels, term=term)
        require(0 <= key_momentum <= 1, "method.key_momentum", key_momentum, "must be in 0..1; the papers use 0.999")
        self.encoder_k = copy_for_keys(encoder_q)
        self.queue = KeyQueue(queue_size, dim, seed=seed)
        self.key_momentum = key_momentum
        self.shuffle_order = shuffle_order
        self.mask_same_image = mask_same_image
        self.symmetric = symmetric
        self.chance_loss = term.chance_loss(queue_size) * (2 if symmetric else 1)

    @torch.no_grad()
    def prepare(self, views: ViewBatch, step: int) -> MoCoBatch:
        """Update the key encoder, then embed the keys of the whole batch."""
        momentum_update(self.encoder_k, self.encoder_q, self.key_momentum)
        order = self.shuffle_order and self.shuffle_order(step, self.layout.batch_size_of(len(views.query)))  # (B,)
        pairs = [(views.query, views.key)]
        if self.symmetric:
            pairs.append((views.key, views.query))
        return MoCoBatch(
            queries=[query for query, _ in pairs],
            keys=[self.forwards.embed_keys(self.encoder_k, key, order) for _, key in pairs],  # (B, C) each
            image_ids=self.forwards.gather(views.image_ids),
            local=views.local,
        )

    def loss(self, batch: MoCoBatch, micro: MicroBatch) -> tuple[Tensor, Rows]:
        """Contrast a micro-batch's queries with their keys and the queue."""
        queries = [self.forwards.embed(self.encoder_q, views[micro.rows], micro) for views in batch.queries]  # (m, C)
        crops = embed_crops(self.forwards, self.encoder_q, batch.local, micro)
        # Scores are taken in float32 at least: q . k / T in bfloat16 would be off by up to 0.02.
        with torch.autocast(queries[0].device.type, enabled=False):
            contrasts = [self._contrast(q, keys, batch, micro) for q, keys in zip(queries, batch.keys, strict=True)]
            of_crops = [[self._contrast(crop, keys, batch, micro) for keys in batch.keys] for crop in crops]
            losses = image_losses([contrasts, *of_crops])  # (m,)
            rows = row_metrics(contrasts, losses, term=self.term)
            rows["bn_leak"] = self._bn_leak(queries[0].detach(), contrasts[0], batch, micro)
            rows["masked_negatives"] = contrasts[0].num_masked
        return losses.sum() / len(batch.image_ids), rows

    def remember(self, batch: MoCoBatch, rows: Rows) -> None:
        """Enqueue the batch's keys: only now, so that no key is a negative of its own batch."""
        for keys in reversed(batch.keys):
            self.queue.enqueue(keys, batch.image_ids)

    def gauges(self) -> dict[str, float]:
        """Return the share of the queue that holds real keys."""
        return {"queue_fill": self.queue.fill}

    def _contrast(self, q: Tensor, keys: Tensor, batch: MoCoBatch, micro: MicroBatch) -> InfoNce:
        """Return the InfoNCE of queries (m * p, C), where each image has p queries (p > 1 with patches)."""
        rows = self.layout.batch_rows(micro, len(keys))
        p = self.encoder_q.queries_per_image
        masks = {}
        if self.mask_same_image:
            masks = {"ids": batch.image_ids[rows].repeat_interleave(p), "negative_ids": self.queue.image_ids}
        positives = keys[rows].repeat_interleave(p, dim=0)  # (m * p, C)
        nce = info_nce(q, positives, self.queue.negatives, temperature=self.temperature, term=self.term, **masks)
        return nce.per_image(p)

    def _bn_leak(self, q: Tensor, contrast: InfoNce, batch: MoCoBatch, micro: MicroBatch) -> Tensor:
        keys = batch.keys[0]
        return bn_leak(
            q.unflatten(0, (-1, self.encoder_q.queries_per_image)).mean(dim=1),  # (m * p, C) -> (m, C)
            keys,
            contrast.positive_similarity,
            self.queue.newest(len(keys)),
            first_row=self.layout.batch_rows(micro, len(keys)).start,
            rows_per_group=self.layout.rows_per_group(len(keys)),
        )


@dataclass(frozen=True, kw_only=True)
class MoCoSettings(PatchSettings):
    """MoCo v1 and v2: a queue of keys from a momentum encoder."""

    name: Annotated[Literal["moco"], flag("--method")] = "moco"
    """The method; another one has settings of its own, which `--method NAME --help` lists."""
    queue_size: int = 65536
    """Number of negative keys K (MoCo v1 sec. 4)."""
    key_momentum: float = 0.999
    """m of the key encoder's moving average."""
    shuffle: bool = True
    """Shuffling BN: keys are normalised beside other images than their queries."""
    mask_same_image: bool = False
    """Leave out negatives that come from the query's own image (small data sets)."""
    symmetric: bool = False
    """Add the loss with the two views' roles exchanged."""

    def check_batch(self, global_batch_size: int) -> None:
        """Raise ValueError if a batch's keys do not fit into the queue."""
        views = 2 if self.symmetric else 1
        require(
            self.queue_size >= views * global_batch_size,
            "method.queue_size",
            self.queue_size,
            f"smaller than data.global_batch_size={global_batch_size}{' times 2 views' if self.symmetric else ''}; "
            "raise one or lower the other",
        )


def build(settings: MoCoSettings, inputs: MethodInputs) -> MoCo:
    """Return the method in its first state."""
    return MoCo(
        inputs.encoder_q,
        dim=inputs.dim,
        queue_size=settings.queue_size,
        key_momentum=settings.key_momentum,
        shuffle_order=seeded_shuffle(inputs.seed) if settings.shuffle else None,
        mask_same_image=settings.mask_same_image,
        symmetric=settings.symmetric,
        seed=inputs.memory_seed,
        **inputs.shared(settings),
    )


def passes(settings: MoCoSettings) -> Passes:
    """Return what a step computes; a symmetric loss does all of it twice."""
    times = 2 if settings.symmetric else 1
    shuffled = times if settings.shuffle else 0
    return Passes(trained_views=times, key_views=times, shuffled_views=shuffled, gathered_rows=times)


def state_bytes(settings: MoCoSettings, *, dim: int, num_images: int) -> float:
    """Return the bytes of the queue: K keys of C floats, each with its image's index (8 bytes)."""
    return settings.queue_size * (4.0 * dim + 8)


def warnings(settings: MoCoSettings, facts: RunFacts) -> list[str]:
    """Return warnings of BatchNorm leaks, and of a queue that holds every image."""
    lines = warn_of_shuffle(settings, facts)
    if settings.queue_size > facts.num_images and not settings.mask_same_image:
        lines.append(
            f"method.queue_size={settings.queue_size}: more negatives than the {facts.num_images} images, so that each "
            "image is its own negative; use a queue smaller than the data set, or method.mask_same_image"
        )
    return lines


SPEC = MethodSpec(settings=MoCoSettings, build=build, passes=passes, state_bytes=state_bytes, warnings=warnings)
