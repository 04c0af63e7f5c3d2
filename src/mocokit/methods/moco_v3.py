"""MoCo v3: symmetric contrast within the batch, momentum keys, a predictor on the queries (Chen et al. 2021, Alg. 1).

Written from the paper and from descriptions of its recipes. The key encoder is backbone and projector, without the
predictor; it is updated before it makes keys. Queries and keys come from different encoders, so the order in which
they are embedded does not matter.

Shapes: B global batch, n rows of it on this rank, m of a micro-batch, C embedding dimension.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from mocokit.data.batch import ViewBatch
from mocokit.losses import PLAIN, InfoNce, NegativeTerm, in_batch_info_nce, row_metrics
from mocokit.methods.contract import (
    Method,
    MethodInputs,
    MethodSpec,
    Passes,
    PatchSettings,
    Rows,
)
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.methods.leak import warn_of_groups
from mocokit.methods.local_crops import embed_crops, image_losses
from mocokit.methods.momentum import copy_for_keys, cosine_key_momentum, momentum_update
from mocokit.nets.encoder import Encoder
from mocokit.nets.heads import build_v3_mlp
from mocokit.settings import flag


@dataclass(frozen=True, kw_only=True)
class MoCoV3Batch:
    """One global batch between `prepare` and the losses."""

    queries: tuple[Tensor, Tensor]
    """(n, 3, H, W) both views of this rank's images, x1 and x2."""
    keys: tuple[Tensor, Tensor]
    """(B, C) keys that belong to each of `queries`: k2 and k1, in batch order."""
    local: Tensor | None
    """(n, V, 3, s, s) local crops of this rank's images."""


class MoCoV3(Method[MoCoV3Batch]):
    """MoCo v3 over one global batch.

    Args:
        encoder_q: Query encoder with a predictor; the key encoder starts as its copy without the predictor.
        global_batch_size: B.
        temperature: Softmax temperature T.
        key_momentum: step -> m of the key encoder's moving average, in 0..1.
        loss_scale: Factor of both directions' losses; None: 2T.
        layout: BatchNorm groups of the global batch, and the part of them that this rank computes.
        pixels: Module that turns views into what the encoders read; None: the identity.
        term: How negatives enter the loss.

    """

    def __init__(
        self,
        encoder_q: Encoder,
        *,
        global_batch_size: int,
        temperature: float,
        key_momentum: Callable[[int], float],
        layout: GroupLayout,
        loss_scale: float | None = None,
        pixels: nn.Module | None = None,
        term: NegativeTerm = PLAIN,
    ) -> None:
        super().__init__(encoder_q, temperature=temperature, layout=layout, pixels=pixels, term=term)
        self.encoder_k = copy_for_keys(encoder_q)
        self.encoder_k.predictor = nn.Identity()
        self.key_momentum = key_momentum
        self.last_key_momentum = 0.0
        """m of the last step, for the log."""
        # 2T, so that one learning rate suits every temperature (Algorithm 1's note).
        self.loss_scale = 2 * temperature if loss_scale is None else loss_scale
        self.chance_loss = 2 * self.loss_scale * term.chance_loss(global_batch_size - 1)

    @torch.no_grad()
    def prepare(self, views: ViewBatch, step: int) -> MoCoV3Batch:
        """Update the key encoder, then embed the keys of both views of the whole batch."""
        self.last_key_momentum = self.key_momentum(step)
        momentum_update(self.encoder_k, self.encoder_q, self.last_key_momentum)
        k1 = self.forwards.embed_all(self.encoder_k, views.query)  # (n, C)
        k2 = self.forwards.embed_all(self.encoder_k, views.key)  # (n, C)
        keys = (self.forwards.gather(k1), self.forwards.gather(k2))  # (B, C) each
        return MoCoV3Batch(queries=(views.query, views.key), keys=(keys[1], keys[0]), local=views.local)

    def loss(self, batch: MoCoV3Batch, micro: MicroBatch) -> tuple[Tensor, Rows]:
        """Contrast a micro-batch's queries with the batch's keys: loss_scale * (ctr(q1, k2) + ctr(q2, k1))."""
        queries = [self.forwards.embed(self.encoder_q, views[micro.rows], micro) for views in batch.queries]  # (m, C)
        crops = embed_crops(self.forwards, self.encoder_q, batch.local, micro)
        with torch.autocast(queries[0].device.type, enabled=False):
            contrasts = self._contrast(queries, batch, micro)
            of_crops = [self._contrast([crop, crop], batch, micro) for crop in crops]
            losses = self.loss_scale * image_losses([contrasts, *of_crops])  # (m,)
            rows = row_metrics(contrasts, losses, term=self.term)
        return losses.sum() / len(batch.keys[0]), rows

    def gauges(self) -> dict[str, float]:
        """Return m of the last step."""
        return {"key_momentum": self.last_key_momentum}

    def _contrast(self, queries: Sequence[Tensor], batch: MoCoV3Batch, micro: MicroBatch) -> list[InfoNce]:
        """Return the InfoNCE of both directions; each image has p queries (m * p, C) in each (p > 1 with patches)."""
        p = self.encoder_q.queries_per_image
        rows = self.layout.batch_rows(micro, len(batch.keys[0]))
        positives = torch.arange(rows.start, rows.stop, device=queries[0].device).repeat_interleave(p)  # (m * p,)
        return [
            in_batch_info_nce(q, keys, positives, temperature=self.temperature, term=self.term).per_image(p)
            for q, keys in zip(queries, batch.keys, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class MoCoV3Settings(PatchSettings):
    """MoCo v3: negatives from the batch, momentum keys and a predictor."""

    name: Annotated[Literal["moco-v3"], flag("--method")] = "moco-v3"
    """The method; another one has settings of its own, which `--method NAME --help` lists."""
    key_momentum: float = 0.999
    """m of the key encoder's moving average."""
    key_momentum_cos: bool = False
    """m rises to 1 by a half cosine."""


def build(settings: MoCoV3Settings, inputs: MethodInputs) -> MoCoV3:
    """Return the method in its first state."""

    def key_momentum(step: int) -> float:
        """Return m of that step."""
        if not settings.key_momentum_cos:
            return settings.key_momentum
        return cosine_key_momentum(step / inputs.total_steps, start=settings.key_momentum)

    return MoCoV3(
        inputs.encoder_q,
        global_batch_size=inputs.global_batch_size,
        key_momentum=key_momentum,
        **inputs.shared(settings),
    )


def build_head(
    feature_dim: int, *, dim: int, head_layers: int, head_width: int, predictor_width: int | None, predictor_bn: bool
) -> tuple[nn.Module, nn.Module]:
    """Return projector, D -> C, and predictor, C -> C."""
    projector = build_v3_mlp(feature_dim, dim, width=head_width, num_layers=head_layers, ends_in_bn=True)
    predictor = build_v3_mlp(dim, dim, width=predictor_width or head_width, num_layers=2, ends_in_bn=predictor_bn)
    return projector, predictor


def passes(settings: MoCoV3Settings) -> Passes:
    """Return what a step computes."""
    return Passes(trained_views=2, key_views=2, gathered_rows=2)


SPEC = MethodSpec(
    settings=MoCoV3Settings,
    build=build,
    build_head=build_head,
    model_settings=("head_layers", "head_width", "predictor_width", "predictor_bn"),
    passes=passes,
    warnings=warn_of_groups,
)
