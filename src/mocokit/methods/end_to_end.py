"""End-to-end contrast: both encoders are trained, and the negatives are the other keys of the batch.

MoCo v1 compares itself with this mechanism (fig. 2a, sec. 4.1): the same InfoNCE, K = B - 1 negatives, shuffling BN for
the keys (sec. 3.3). Memory grows with the batch there, so the paper stops at 1024 images; gradient caching lifts that.
Figure 2a draws two encoders: the key encoder here starts as a copy of the query encoder and takes its own gradient.

Shapes: B global batch, n rows of it on this rank, C embedding dimension.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mocokit.losses import PLAIN, NegativeTerm, in_batch_info_nce, row_metrics
from mocokit.methods.gradient_cache import cached_micro_losses
from mocokit.methods.group_forward import GroupForward, ShuffleOrder, cat_rows, require_temperature, unshuffle
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.methods.local_crops import embed_crops, image_losses
from mocokit.nets.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class EndToEndBatch:
    """What one global batch needs between `prepare` and `remember`."""

    query: Tensor
    """(n, 3, H, W) this rank's query views."""
    key: Tensor
    """(n, 3, H, W) key views of the slots of the shuffled batch that this rank computes."""
    order: Tensor | None
    """(B,) the shuffle, or None."""
    local: Tensor | None
    """(n, V, 3, s, s) local crops of this rank's images."""


class EndToEnd(nn.Module):
    """End-to-end contrast over one global batch: `prepare`, then each of `micro_losses`, then `remember`.

    Args:
        encoder_q: Query encoder; the key encoder starts as its copy and is trained too.
        global_batch_size: B.
        temperature: Softmax temperature T.
        layout: BatchNorm groups of the global batch, and the part that this rank computes.
        pixels: Module that turns views into what the encoders read; runs a micro-batch at a time.
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
        super().__init__()
        require_temperature(temperature)
        self.encoder_q = encoder_q
        self.encoder_k = copy.deepcopy(encoder_q)
        self.pixels = pixels or nn.Identity()
        self.layout = layout
        self.forwards = GroupForward(layout, self.pixels)
        self.temperature = temperature
        self.shuffle_order = shuffle_order
        self.term = term
        self.chance_loss = term.chance_loss(global_batch_size - 1)
        self._batch: EndToEndBatch | None = None
        self.row_metrics: dict[str, Tensor] = {}
        """(n,) values of each row of the last batch, on this rank; no gradient."""

    @torch.no_grad()
    def prepare(self, query: Tensor, key: Tensor, image_ids: Tensor, step: int, local: Tensor | None = None) -> None:
        """Shuffle the key views; see MoCo.prepare for the arguments."""
        size = self.layout.batch_size_of(len(query))
        order = None if self.shuffle_order is None else self.shuffle_order(step, size)  # (B,)
        self._batch = EndToEndBatch(query=query, key=self.forwards.shuffle(key, order), order=order, local=local)

    def micro_losses(self) -> Iterator[Tensor]:
        """One scalar a micro-batch; their sum over micro-batches and ranks is the mean loss of the global batch."""
        assert self._batch is not None, "call prepare() first"
        batch = self._batch
        metrics = list[dict[str, Tensor]]()
        size = self.layout.batch_size_of(len(batch.query))
        own = self.layout.own_rows(size)

        def embed(micro: MicroBatch, moves: bool) -> Tensor:
            """(rows, 2 + V, C): the query of each image, the key of the slot with the same number, the local crops."""
            q = self.forwards.run(self.encoder_q, batch.query, micro, moves=moves)
            k = self.forwards.run(self.encoder_k, batch.key, micro, moves=moves)
            return torch.stack([q, k, *embed_crops(self.forwards, self.encoder_q, batch.local, micro)], dim=1)

        def score(embeddings: Tensor, micro: MicroBatch) -> Tensor:
            """Contrast the micro-batch's queries with all keys."""
            keys = unshuffle(embeddings[:, 1], batch.order)  # (B, C)
            rows = torch.arange(own.start, own.stop, device=keys.device)[micro.rows]
            q, _, *crops = embeddings[rows].unbind(dim=1)  # (rows, C) each
            contrasts = [
                in_batch_info_nce(z, keys, rows, temperature=self.temperature, term=self.term) for z in (q, *crops)
            ]
            losses = image_losses([[nce] for nce in contrasts])
            metrics.append(row_metrics(contrasts[:1], losses, term=self.term))
            return losses.sum() / size

        yield from cached_micro_losses(embed, score, layout=self.layout, global_batch_size=size)
        self.row_metrics = cat_rows(metrics)

    def remember(self) -> None:
        """Nothing outlives the batch."""
        self._batch = None

    def gauges(self) -> dict[str, float]:
        """Numbers of the method's own state for a log line: none."""
        return {}
