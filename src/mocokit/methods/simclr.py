"""SimCLR: contrast both views of each image with all other views of the batch (Chen et al. 2020, Algorithm 1).

There is one encoder. Both views of a group's images share its BatchNorm statistics, as in the official code, where they
are one batch of 2B. The gradient goes through all 2B views on all ranks. v2 differs in its head of three layers.

Shapes: B global batch, n rows of it on this rank, m of a micro-batch, V local crops an image, C embedding dimension.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from mocokit.data.batch import ViewBatch
from mocokit.losses import PLAIN, NegativeTerm, nt_xent, row_metrics
from mocokit.methods.contract import Method, MethodInputs, MethodSettings, MethodSpec, Passes, Rows
from mocokit.methods.gradient_cache import CachedGradient, cache_gradient
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.methods.leak import warn_of_groups
from mocokit.methods.local_crops import embed_crops, image_losses
from mocokit.nets.encoder import Encoder
from mocokit.nets.heads import build_simclr_head
from mocokit.settings import flag


class SimClr(Method[CachedGradient]):
    """SimCLR over one global batch.

    Args:
        encoder_q: The encoder of both views.
        global_batch_size: B.
        temperature: Softmax temperature T.
        layout: BatchNorm groups of the global batch, and the part of them that this rank computes.
        pixels: Module that turns views into what the encoder reads; None: the identity.
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
        term: NegativeTerm = PLAIN,
    ) -> None:
        super().__init__(encoder_q, temperature=temperature, layout=layout, pixels=pixels, term=term)
        self.chance_loss = 2 * term.chance_loss(2 * global_batch_size - 2)

    def prepare(self, views: ViewBatch, step: int) -> CachedGradient:
        """Embed the whole batch; take its loss and the gradient with respect to the embeddings."""
        return cache_gradient(
            lambda micro, update_bn_stats: self._embed(views, micro, update_bn_stats),
            self._score,
            layout=self.layout,
            global_batch_size=self.layout.batch_size_of(len(views.query)),
        )

    def loss(self, batch: CachedGradient, micro: MicroBatch) -> tuple[Tensor, Rows]:
        """Return the micro-batch's share of the loss; see gradient_cache.py."""
        return batch.loss(micro)

    def _embed(self, views: ViewBatch, micro: MicroBatch, update_bn_stats: bool) -> Tensor:
        """Return (m, 2 + V, C): both views, which share their BatchNorm group, and the local crops."""
        pair = [view[micro.rows].unflatten(0, (micro.num_groups, -1)) for view in (views.query, views.key)]
        by_group = torch.cat(pair, dim=1).flatten(0, 1)  # (2m, 3, H, W): a group's queries, then its keys
        z = self.forwards.embed(self.encoder_q, by_group, micro, update_bn_stats=update_bn_stats)  # (2m, C)
        pairs = z.unflatten(0, (micro.num_groups, 2, -1)).transpose(1, 2).flatten(0, 1)  # (m, 2, C)
        crops = embed_crops(self.forwards, self.encoder_q, views.local, micro)
        return torch.stack([*pairs.unbind(dim=1), *crops], dim=1)

    def _score(self, embeddings: Tensor, micro: MicroBatch) -> tuple[Tensor, Rows]:
        """Contrast the micro-batch's views with all views (B, 2 + V, C) of the batch.

        An image's loss is the sum of its two views', as in the official code: twice the paper's mean over 2B views.
        """
        rows = self.layout.batch_rows(micro, len(embeddings))
        q, k, *crops = embeddings.unbind(dim=1)  # (B, C) each
        contrasts = [
            nt_xent(q, k, temperature=self.temperature, rows=rows, term=self.term, crops=instead)
            for instead in (None, *(crop[rows] for crop in crops))
        ]
        losses = image_losses(contrasts)  # (m,)
        return losses.sum() / len(embeddings), row_metrics(contrasts[0], losses, term=self.term)


@dataclass(frozen=True, kw_only=True)
class SimClrSettings(MethodSettings):
    """SimCLR: negatives from the batch, one trained encoder."""

    name: Annotated[Literal["simclr"], flag("--method")] = "simclr"
    """The method; another one has settings of its own, which `--method NAME --help` lists."""


def build(settings: SimClrSettings, inputs: MethodInputs) -> SimClr:
    """Return the method in its first state."""
    return SimClr(inputs.encoder_q, global_batch_size=inputs.global_batch_size, **inputs.shared(settings))


def build_head(feature_dim: int, *, dim: int, head_layers: int) -> tuple[nn.Module, None]:
    """Return SimCLR's head, D -> C, and no predictor."""
    return build_simclr_head(feature_dim, dim, num_layers=head_layers), None


def passes(settings: SimClrSettings) -> Passes:
    """Return what a step computes: 2 embeddings an image are gathered, and their gradients summed over ranks."""
    return Passes(trained_views=2, joins_batch=True, gathered_rows=2 + 2 * 2)


SPEC = MethodSpec(
    settings=SimClrSettings,
    build=build,
    build_head=build_head,
    model_settings=("head_layers",),
    passes=passes,
    warnings=warn_of_groups,
)
