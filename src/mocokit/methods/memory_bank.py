"""Memory bank: contrast each image with its own feature of an epoch ago, and with other images' (Wu et al. 2018).

One feature an image; a batch overwrites those of its images by a moving average of themselves, features and not
weights (MoCo v1 fig. 2b, sec. 3.2 "Relations to previous mechanisms"). InfoNCE over sampled negatives, as MoCo v1's
comparison; InstDisc itself approximated it by NCE. The negatives of a step are one draw for the whole batch, where
InstDisc draws for each query: the same in expectation, and one product of matrices. One view an image is used.

Shapes: B global batch, n rows of it on this rank, C embedding dimension, K negatives, M images of the data set.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocokit.losses import PLAIN, NegativeTerm, info_nce, row_metrics
from mocokit.methods.group_forward import GroupForward, cat_rows, require_temperature
from mocokit.methods.groups import GroupLayout
from mocokit.methods.local_crops import embed_crops, image_losses
from mocokit.nets.encoder import Encoder

SampleImages = Callable[[int], Tensor]
"""step -> (K,) images whose features are the step's negatives. The same on every rank."""


class MemoryBank(nn.Module):
    """The memory bank over one global batch: `prepare`, then each of `micro_losses`, then `remember`.

    Args:
        encoder_q: The encoder.
        dim: Embedding dimension C of `encoder_q`.
        num_images: M.
        num_negatives: K.
        temperature: Softmax temperature T.
        feature_momentum: Weight of an image's old feature when its new one comes in (InstDisc: 0.5).
        layout: BatchNorm groups of the global batch, and the part that this rank computes.
        sample: Draws the negatives of each step; a query's own image among them does not count.
        pixels: Module that turns views into what the encoder reads; runs a micro-batch at a time.
        seed: Seed of the bank's first rows.
        term: How negatives enter the loss.

    """

    features: Tensor
    seen: Tensor

    def __init__(
        self,
        encoder_q: Encoder,
        *,
        dim: int,
        num_images: int,
        num_negatives: int,
        temperature: float,
        feature_momentum: float,
        layout: GroupLayout,
        sample: SampleImages,
        pixels: nn.Module | None = None,
        seed: int = 0,
        term: NegativeTerm = PLAIN,
    ) -> None:
        super().__init__()
        require_temperature(temperature)
        if not 0 <= feature_momentum < 1:
            raise ValueError(f"method.feature_momentum={feature_momentum}: must be in 0..1, below 1; InstDisc has 0.5")
        self.encoder_q = encoder_q
        self.temperature = temperature
        self.feature_momentum = feature_momentum
        self.pixels = pixels or nn.Identity()
        self.term = term
        self.layout = layout
        self.forwards = GroupForward(layout, self.pixels)
        self.sample = sample
        noise = torch.randn(num_images, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("features", F.normalize(noise, dim=1))  # (M, C); ImageNet: 1281167*128*4 B = 656 MB
        self.register_buffer("seen", torch.zeros(num_images, dtype=torch.bool))  # (M,)
        self.chance_loss = term.chance_loss(num_negatives)
        self._batch: tuple[Tensor, Tensor, Tensor, Tensor | None] | None = None
        self._fresh: Tensor | None = None
        self.row_metrics: dict[str, Tensor] = {}
        """(n,) values of each row of the last batch, on this rank; no gradient."""

    def prepare(self, query: Tensor, key: Tensor, image_ids: Tensor, step: int, local: Tensor | None = None) -> None:
        """Draw the negatives; see MoCo.prepare for the arguments. Key views are not used."""
        self._batch = query, image_ids, self.sample(step).to(image_ids.device), local

    def micro_losses(self) -> Iterator[Tensor]:
        """One scalar a micro-batch; their sum over micro-batches and ranks is the mean loss of the global batch."""
        assert self._batch is not None, "call prepare() first"
        query, image_ids, negative_ids, local = self._batch
        size = self.layout.batch_size_of(len(query))
        metrics = list[dict[str, Tensor]]()
        fresh = list[Tensor]()
        negatives = self.features[negative_ids]  # (K, C)
        for micro in self.layout.micro_batches(size):
            q = self.forwards.run(self.encoder_q, query, micro)
            ids = image_ids[micro.rows]
            crops = embed_crops(self.forwards, self.encoder_q, local, micro)
            with torch.autocast(q.device.type, enabled=False):
                contrasts = [
                    info_nce(
                        rows,
                        self.features[ids],
                        negatives,
                        temperature=self.temperature,
                        ids=ids,
                        negative_ids=negative_ids,
                        term=self.term,
                    )
                    for rows in (q, *crops)
                ]
                losses = image_losses([[nce] for nce in contrasts])
            metrics.append(row_metrics(contrasts[:1], losses, term=self.term))
            fresh.append(q.detach())
            yield losses.sum() / size
        self.row_metrics = cat_rows(metrics)
        self._fresh = torch.cat(fresh)

    @torch.no_grad()
    def remember(self) -> None:
        """Move the features of the batch's images towards what the encoder said; call after the optimizer step."""
        assert self._batch is not None and self._fresh is not None, "call prepare() and micro_losses() first"
        fresh = self.forwards.gather(self._fresh)  # (B, C), (B,)
        ids = self.forwards.gather(self._batch[1])
        comes_again = (ids[:, None] == ids[None, :]).triu(1).any(dim=1)  # a replacement of a bad image; the last counts
        fresh = fresh[~comes_again]
        ids = ids[~comes_again]
        mixed = self.feature_momentum * self.features[ids] + (1 - self.feature_momentum) * fresh
        self.features[ids] = F.normalize(mixed, dim=1).to(self.features.dtype)
        self.seen[ids] = True
        self._batch = self._fresh = None

    def gauges(self) -> dict[str, float]:
        """Numbers of the method's own state for a log line; waits for the device."""
        return {"bank_fill": float(self.seen.double().mean())}
