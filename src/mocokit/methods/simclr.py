"""SimCLR: contrast both views of each image with all other views of the batch (Chen et al. 2020, Algorithm 1).

One encoder; both views of a group's images share its BatchNorm statistics, as in the official code, where they are one
batch of 2B. The gradient goes through all 2B views on all ranks. v2 differs in its head of three layers.

Shapes: B global batch, n rows of it on this rank, C embedding dimension.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mocokit.losses import PLAIN, NegativeTerm, nt_xent, row_metrics
from mocokit.methods.gradient_cache import cached_micro_losses
from mocokit.methods.group_forward import GroupForward, cat_rows, require_temperature
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.methods.local_crops import embed_crops, image_losses
from mocokit.nets.encoder import Encoder


class SimClr(nn.Module):
    """SimCLR over one global batch: `prepare`, then each of `micro_losses`, then `remember`.

    Args:
        encoder_q: The encoder of both views.
        global_batch_size: B.
        temperature: Softmax temperature T.
        layout: BatchNorm groups of the global batch, and the part that this rank computes.
        pixels: Module that turns views into what the encoder reads; runs a micro-batch at a time.
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
        super().__init__()
        require_temperature(temperature)
        self.encoder_q = encoder_q
        self.temperature = temperature
        self.term = term
        self.pixels = pixels or nn.Identity()
        self.layout = layout
        self.forwards = GroupForward(layout, self.pixels)
        self.chance_loss = 2 * term.chance_loss(2 * global_batch_size - 2)
        self._views: tuple[Tensor, Tensor, Tensor | None] | None = None
        self.row_metrics: dict[str, Tensor] = {}
        """(n,) values of each row of the last batch, on this rank; no gradient."""

    def prepare(self, query: Tensor, key: Tensor, image_ids: Tensor, step: int, local: Tensor | None = None) -> None:
        """Take the batch's views; see MoCo.prepare for the arguments."""
        self._views = query, key, local

    def micro_losses(self) -> Iterator[Tensor]:
        """One scalar a micro-batch; their sum over micro-batches and ranks is the mean loss of the global batch.

        An image's loss is the sum of its two views', as in the official code: twice the paper's mean over 2B views.
        """
        assert self._views is not None, "call prepare() first"
        (query, key, local) = self._views
        metrics = list[dict[str, Tensor]]()
        size = self.layout.batch_size_of(len(query))
        first = self.layout.own_rows(size).start

        def embed(micro: MicroBatch, moves: bool) -> Tensor:
            """(rows, 2 + V, C) of both views, which share their group, and of the local crops."""
            by_group = [views[micro.rows].unflatten(0, (micro.num_groups, -1)) for views in (query, key)]
            views = torch.cat(by_group, dim=1).flatten(0, 1)  # (2 * rows, 3, H, W), a group's queries, then its keys
            z = self.forwards.run(self.encoder_q, views, micro, views_per_image=2, moves=moves)
            pairs = z.unflatten(0, (micro.num_groups, 2, -1)).transpose(1, 2).flatten(0, 1)
            return torch.stack([*pairs.unbind(dim=1), *embed_crops(self.forwards, self.encoder_q, local, micro)], dim=1)

        def score(embeddings: Tensor, micro: MicroBatch) -> Tensor:
            """Contrast the micro-batch's views with all views."""
            rows = slice(first + micro.rows.start, first + micro.rows.stop)
            q, k, *crops = embeddings.unbind(dim=1)  # (B, C) each
            contrasts = [
                nt_xent(q, k, temperature=self.temperature, rows=rows, term=self.term, crops=instead)
                for instead in (None, *(crop[rows] for crop in crops))
            ]
            losses = image_losses(contrasts)
            metrics.append(row_metrics(contrasts[0], losses, term=self.term))
            return losses.sum() / size

        yield from cached_micro_losses(embed, score, layout=self.layout, global_batch_size=size)
        self.row_metrics = cat_rows(metrics)

    def remember(self) -> None:
        """Nothing outlives the batch."""
        self._views = None

    def gauges(self) -> dict[str, float]:
        """Numbers of the method's own state for a log line: none."""
        return {}
