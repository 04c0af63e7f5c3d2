"""MoCo v3: symmetric contrast within the batch, momentum keys, a predictor on the queries (Chen et al. 2021, Alg. 1).

Written from the paper and from descriptions of its recipes. The key encoder is backbone and projector, without the
predictor; it is updated before it makes keys. q and k come from different encoders, whose order does not matter.

Shapes: B global batch, n rows of it on this rank, C embedding dimension.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from mocokit.losses import PLAIN, InfoNce, NegativeTerm, in_batch_info_nce, row_metrics
from mocokit.methods.group_forward import GroupForward, cat_rows, require_temperature
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.methods.local_crops import embed_crops, image_losses
from mocokit.methods.momentum import copy_for_keys, momentum_update
from mocokit.nets.encoder import Encoder


class MoCoV3(nn.Module):
    """MoCo v3 over one global batch: `prepare`, then each of `micro_losses`, then `remember`.

    Args:
        encoder_q: Query encoder with a predictor; the key encoder starts as its copy, less the predictor.
        global_batch_size: B.
        temperature: Softmax temperature T.
        key_momentum: step -> m of the key encoder's moving average, in 0..1.
        layout: BatchNorm groups of the global batch, and the part that this rank computes.
        pixels: Module that turns views into what the encoders read; runs a micro-batch at a time.
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
        pixels: nn.Module | None = None,
        term: NegativeTerm = PLAIN,
    ) -> None:
        super().__init__()
        require_temperature(temperature)
        self.encoder_q = encoder_q
        self.encoder_k = copy_for_keys(encoder_q)
        self.encoder_k.predictor = nn.Identity()
        self.pixels = pixels or nn.Identity()
        self.layout = layout
        self.forwards = GroupForward(layout, self.pixels)
        self.temperature = temperature
        self.key_momentum = key_momentum
        self.term = term
        self.chance_loss = 2 * 2 * temperature * term.chance_loss(global_batch_size - 1)
        self._views: tuple[Tensor, Tensor] | None = None
        self._local: Tensor | None = None
        self._keys: tuple[Tensor, Tensor] | None = None
        self._last_momentum = 0.0
        self.row_metrics: dict[str, Tensor] = {}
        """(n,) values of each row of the last batch, on this rank; no gradient."""

    @torch.no_grad()
    def prepare(self, query: Tensor, key: Tensor, image_ids: Tensor, step: int, local: Tensor | None = None) -> None:
        """The momentum update, then the keys of both views; see MoCo.prepare for the arguments."""
        self._last_momentum = self.key_momentum(step)
        momentum_update(self.encoder_k, self.encoder_q, self._last_momentum)
        self._views = (query, key)
        self._local = local
        first, second = (self.forwards.run_all(self.encoder_k, views) for views in (query, key))
        self._keys = self.forwards.gather(first), self.forwards.gather(second)  # (B, C) each

    def micro_losses(self) -> Iterator[Tensor]:
        """One scalar a micro-batch; their sum over micro-batches and ranks is the mean loss of the global batch.

        ctr(q1, k2) + ctr(q2, k1), each times 2T, so that a rate suits every temperature (Algorithm 1's note).
        """
        assert self._views is not None and self._keys is not None, "call prepare() first"
        size = len(self._keys[0])
        weight = 2 * self.temperature
        metrics = list[dict[str, Tensor]]()
        for micro in self.layout.micro_batches(size):
            queries = [self.forwards.run(self.encoder_q, views, micro) for views in self._views]  # (micro rows, C)
            crops = embed_crops(self.forwards, self.encoder_q, self._local, micro)
            with torch.autocast(queries[0].device.type, enabled=False):
                directions = self._contrast(queries, micro)
                losses = weight * image_losses([directions, *(self._contrast([crop] * 2, micro) for crop in crops)])
                metrics.append(row_metrics(directions, losses, term=self.term))
            yield losses.sum() / size
        self.row_metrics = cat_rows(metrics)

    def _contrast(self, queries: Sequence[Tensor], micro: MicroBatch) -> list[InfoNce]:
        """The first of `queries` (micro rows, C) with the second views' keys, and the other way round."""
        assert self._keys is not None, "call prepare() first"
        own = self.layout.own_rows(len(self._keys[0]))
        several = self.encoder_q.queries_per_image
        rows = torch.arange(own.start, own.stop, device=queries[0].device)[micro.rows].repeat_interleave(several)
        return [
            in_batch_info_nce(q, keys, rows, temperature=self.temperature, term=self.term).per_image(several)
            for q, keys in zip(queries, reversed(self._keys), strict=True)
        ]

    def remember(self) -> None:
        """Nothing outlives the batch."""
        self._views = self._keys = self._local = None

    def gauges(self) -> dict[str, float]:
        """Numbers of the method's own state for a log line."""
        return {"key_momentum": self._last_momentum}
