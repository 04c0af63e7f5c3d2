"""Memory bank: contrast each image with its own feature of an epoch ago, and with other images' (Wu et al. 2018).

The bank holds one feature an image. A batch mixes the new features of its images into the old ones: a moving average
of features, not of weights (MoCo v1 fig. 2b, sec. 3.2 "Relations to previous mechanisms"). The loss is InfoNCE over
sampled negatives, as in MoCo v1's comparison; InstDisc itself approximated it by NCE. The negatives of a step are one
draw for the whole batch, where InstDisc draws for each query: the same in expectation, and one matrix product. One view
an image is used.

Shapes: B global batch, n rows of it on this rank, m of a micro-batch, C embedding dimension, K negatives, M images of
the data set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocokit.data.batch import ViewBatch
from mocokit.losses import PLAIN, NegativeTerm, info_nce, row_metrics
from mocokit.methods.contract import Method, MethodInputs, MethodSettings, MethodSpec, Passes, Rows
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.methods.local_crops import embed_crops, image_losses
from mocokit.nets.encoder import Encoder
from mocokit.randomness import Purpose, generator
from mocokit.settings import flag, require

SampleImages = Callable[[int], Tensor]
"""step -> (K,) images whose features are the step's negatives. The same on every rank."""


@dataclass(frozen=True, kw_only=True)
class MemoryBankBatch:
    """One global batch between `prepare` and `remember`."""

    query: Tensor
    """(n, 3, H, W) views of this rank's images."""
    image_ids: Tensor
    """(n,) their indices in the data set."""
    negative_ids: Tensor
    """(K,) images whose features are the negatives."""
    negatives: Tensor
    """(K, C) those features."""
    local: Tensor | None
    """(n, V, 3, s, s) local crops of this rank's images."""


class MemoryBank(Method[MemoryBankBatch]):
    """The memory bank over one global batch.

    Args:
        encoder_q: The encoder.
        dim: Embedding dimension C of `encoder_q`.
        num_images: M.
        num_negatives: K.
        temperature: Softmax temperature T.
        feature_momentum: Weight of an image's old feature when its new one comes in (InstDisc: 0.5).
        layout: BatchNorm groups of the global batch, and the part of them that this rank computes.
        sample: Draws the negatives of each step; a query's own image among them does not count.
        pixels: Module that turns views into what the encoder reads; None: the identity.
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
        super().__init__(encoder_q, temperature=temperature, layout=layout, pixels=pixels, term=term)
        require(
            0 <= feature_momentum < 1,
            "method.feature_momentum",
            feature_momentum,
            "must be in 0..1, below 1; InstDisc has 0.5",
        )
        self.feature_momentum = feature_momentum
        self.sample = sample
        noise = torch.randn(num_images, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("features", F.normalize(noise, dim=1))  # (M, C); ImageNet: 1281167*128*4 B = 656 MB
        self.register_buffer("seen", torch.zeros(num_images, dtype=torch.bool))  # (M,)
        self.chance_loss = term.chance_loss(num_negatives)

    def prepare(self, views: ViewBatch, step: int) -> MemoryBankBatch:
        """Draw the negatives; key views are not used."""
        negative_ids = self.sample(step).to(views.image_ids.device)
        return MemoryBankBatch(
            query=views.query,
            image_ids=views.image_ids,
            negative_ids=negative_ids,
            negatives=self.features[negative_ids],
            local=views.local,
        )

    def loss(self, batch: MemoryBankBatch, micro: MicroBatch) -> tuple[Tensor, Rows]:
        """Contrast a micro-batch's queries with their images' old features and the drawn ones."""
        q = self.forwards.embed(self.encoder_q, batch.query[micro.rows], micro)  # (m, C)
        crops = embed_crops(self.forwards, self.encoder_q, batch.local, micro)
        ids = batch.image_ids[micro.rows]
        with torch.autocast(q.device.type, enabled=False):
            contrasts = [
                info_nce(
                    z,
                    self.features[ids],
                    batch.negatives,
                    temperature=self.temperature,
                    ids=ids,
                    negative_ids=batch.negative_ids,
                    term=self.term,
                )
                for z in (q, *crops)
            ]
            losses = image_losses([[nce] for nce in contrasts])  # (m,)
        rows = row_metrics(contrasts[:1], losses, term=self.term)
        rows["features"] = q.detach()  # (m, C)
        return losses.sum() / self.layout.batch_size_of(len(batch.query)), rows

    @torch.no_grad()
    def remember(self, batch: MemoryBankBatch, rows: Rows) -> None:
        """Mix the new features of the batch's images into the bank."""
        new = self.forwards.gather(rows["features"])  # (B, C)
        ids = self.forwards.gather(batch.image_ids)  # (B,)
        # An image can stand twice in a batch, as the replacement of a bad one: its last row counts. Its rows are all
        # set to that one, then written: to leave some out, the host would have to wait for their number.
        numbers = torch.arange(len(ids), device=ids.device)
        last = torch.where(ids[:, None] == ids[None, :], numbers, -1).amax(dim=1)  # (B,) last row of each row's image
        new = new[last]
        mixed = self.feature_momentum * self.features[ids] + (1 - self.feature_momentum) * new
        self.features[ids] = F.normalize(mixed, dim=1).to(self.features.dtype)
        self.seen[ids] = True

    def gauges(self) -> dict[str, float]:
        """Return the share of images whose feature is real; waits for the device."""
        return {"bank_fill": int(self.seen.sum()) / len(self.seen)}


@dataclass(frozen=True, kw_only=True)
class MemoryBankSettings(MethodSettings):
    """Memory bank: negatives from stored features of all images."""

    name: Annotated[Literal["memory-bank"], flag("--method")] = "memory-bank"
    """The method; another one has settings of its own, which `--method NAME --help` lists."""
    num_negatives: int = 65536
    """Features drawn from the bank each step, K."""
    feature_momentum: float = 0.5
    """Weight of an image's old feature when its new one comes in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_negatives >= 1, "method.num_negatives", self.num_negatives, "must be at least 1")


def build(settings: MemoryBankSettings, inputs: MethodInputs) -> MemoryBank:
    """Return the method in its first state."""

    def sample(step: int) -> Tensor:
        draws = generator(inputs.seed, Purpose.BANK_SAMPLE, step)
        return torch.from_numpy(draws.integers(inputs.num_images, size=settings.num_negatives))

    return MemoryBank(
        inputs.encoder_q,
        dim=inputs.dim,
        num_images=inputs.num_images,
        num_negatives=settings.num_negatives,
        feature_momentum=settings.feature_momentum,
        sample=sample,
        seed=inputs.memory_seed,
        **inputs.shared(settings),
    )


def passes(settings: MemoryBankSettings) -> Passes:
    """Return what a step computes."""
    return Passes(trained_views=1, gathered_rows=1)


def state_bytes(settings: MemoryBankSettings, *, dim: int, num_images: int) -> float:
    """Return the bytes of the bank: M features of C floats, and a flag for each."""
    return num_images * (4.0 * dim + 1)


# No warnings: a query's positive comes from another batch, so shared BatchNorm statistics give nothing away
# (MoCo v1 sec. 3.3).
SPEC = MethodSpec(settings=MemoryBankSettings, build=build, passes=passes, state_bytes=state_bytes)
