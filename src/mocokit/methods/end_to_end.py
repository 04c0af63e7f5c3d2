"""End-to-end contrast: both encoders are trained, and the negatives are the other keys of the batch.

MoCo v1 compares itself with this mechanism (fig. 2a, sec. 4.1): the same InfoNCE, K = B - 1 negatives, shuffling BN for
the keys (sec. 3.3). Memory grows with the batch there, so the paper stops at 1024 images; gradient caching lifts that.
Figure 2a draws two encoders: here the key encoder starts as a copy of the query encoder and takes its own gradient.

Shapes: B global batch, n rows of it on this rank, m of a micro-batch, V local crops an image, C embedding dimension.
"""

import copy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from mocokit.data.batch import ViewBatch
from mocokit.losses import PLAIN, NegativeTerm, in_batch_info_nce, row_metrics
from mocokit.methods.contract import Method, MethodInputs, MethodSettings, MethodSpec, Passes, Rows
from mocokit.methods.gradient_cache import CachedGradient, cache_gradient
from mocokit.methods.group_forward import ShuffleOrder, seeded_shuffle, unshuffle
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.methods.leak import warn_of_shuffle
from mocokit.methods.local_crops import embed_crops, image_losses
from mocokit.nets.encoder import Encoder
from mocokit.settings import flag


class EndToEnd(Method[CachedGradient]):
    """End-to-end contrast over one global batch.

    Args:
        encoder_q: Query encoder; the key encoder starts as its copy and is trained too.
        global_batch_size: B.
        temperature: Softmax temperature T.
        layout: BatchNorm groups of the global batch, and the part of them that this rank computes.
        pixels: Module that turns views into what the encoders read; None: the identity.
        shuffle_order: Permutation of shuffling BN for each step; None: no shuffle.
        term: How negatives enter the loss.

    """

    def __init__(
        self,
        encoder_q: Encoder,
        *,
        global_batch_size: int,
        temperature: float,
        layout: GroupLayout,
        pixels: nn.Module | None = None,
        shuffle_order: ShuffleOrder | None = None,
        term: NegativeTerm = PLAIN,
    ) -> None:
        super().__init__(encoder_q, temperature=temperature, layout=layout, pixels=pixels, term=term)
        self.encoder_k = copy.deepcopy(encoder_q)
        self.shuffle_order = shuffle_order
        self.chance_loss = term.chance_loss(global_batch_size - 1)

    def prepare(self, views: ViewBatch, step: int) -> CachedGradient:
        """Embed queries and shuffled keys of the whole batch; take the loss and its gradient with respect to them."""
        size = self.layout.batch_size_of(len(views.query))
        order = self.shuffle_order and self.shuffle_order(step, size)  # (B,)
        slots = self.forwards.shuffle(views.key, order)  # (n, 3, H, W)

        def embed(micro: MicroBatch, update_bn_stats: bool) -> Tensor:
            """Return (m, 2 + V, C): each image's query, the key of the slot of the same number, local crops."""
            q = self.forwards.embed(self.encoder_q, views.query[micro.rows], micro, update_bn_stats=update_bn_stats)
            k = self.forwards.embed(self.encoder_k, slots[micro.rows], micro, update_bn_stats=update_bn_stats)
            return torch.stack([q, k, *embed_crops(self.forwards, self.encoder_q, views.local, micro)], dim=1)

        def score(embeddings: Tensor, micro: MicroBatch) -> tuple[Tensor, Rows]:
            """Contrast the micro-batch's queries with all keys of the batch (B, 2 + V, C)."""
            keys = unshuffle(embeddings[:, 1], order)  # (B, C)
            rows = self.layout.batch_rows(micro, size)
            positives = torch.arange(rows.start, rows.stop, device=keys.device)  # (m,)
            q, _, *crops = embeddings[positives].unbind(dim=1)  # (m, C) each
            contrasts = [
                in_batch_info_nce(z, keys, positives, temperature=self.temperature, term=self.term) for z in (q, *crops)
            ]
            losses = image_losses([[nce] for nce in contrasts])  # (m,)
            return losses.sum() / size, row_metrics(contrasts[:1], losses, term=self.term)

        return cache_gradient(embed, score, layout=self.layout, global_batch_size=size)

    def loss(self, batch: CachedGradient, micro: MicroBatch) -> tuple[Tensor, Rows]:
        """Return the micro-batch's share of the loss; see gradient_cache.py."""
        return batch.loss(micro)


@dataclass(frozen=True, kw_only=True)
class EndToEndSettings(MethodSettings):
    """End-to-end: negatives from the batch, both encoders trained."""

    name: Annotated[Literal["end-to-end"], flag("--method")] = "end-to-end"
    """The method; another one has settings of its own, which `--method NAME --help` lists."""
    shuffle: bool = True
    """Shuffling BN: keys are normalised beside other images than their queries."""


def build(settings: EndToEndSettings, inputs: MethodInputs) -> EndToEnd:
    """Return the method in its first state."""
    return EndToEnd(
        inputs.encoder_q,
        global_batch_size=inputs.global_batch_size,
        shuffle_order=seeded_shuffle(inputs.seed) if settings.shuffle else None,
        **inputs.shared(settings),
    )


def passes(settings: EndToEndSettings) -> Passes:
    """Return what a step computes: 2 embeddings an image are gathered, and their gradients summed over ranks."""
    shuffled = 1 if settings.shuffle else 0
    return Passes(trained_views=2, num_trained=2, joins_batch=True, shuffled_views=shuffled, gathered_rows=2 + 2 * 2)


SPEC = MethodSpec(settings=EndToEndSettings, build=build, passes=passes, warnings=warn_of_shuffle)
