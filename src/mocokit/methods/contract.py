"""The contract between a method, the engine that trains it, and the settings that describe it.

A method is one file that ends in a `SPEC`: its settings, how to build it, and what it costs. The engine's step
(engine/train.py) calls a `Method` in this order, and nothing is kept in the module between the calls but parameters
and buffers:

    batch = method.prepare(views, step)      # once: keys, or all embeddings of the batch
    loss, rows = method.loss(batch, micro)   # for each micro-batch, followed by its backward pass
    method.remember(batch, rows)             # once, after the optimizer step: enqueue

Shapes: B global batch, n rows of it on this rank, m rows of a micro-batch, C embedding dimension, D feature dimension.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mocokit.data.batch import ViewBatch
from mocokit.losses import PLAIN, NegativeTerm
from mocokit.methods.group_forward import GroupForward
from mocokit.methods.groups import GroupLayout, MicroBatch
from mocokit.nets.encoder import Encoder
from mocokit.nets.heads import build_head
from mocokit.randomness import Purpose, torch_seed
from mocokit.settings import flag, require

Batch = TypeVar("Batch")

Rows = dict[str, Tensor]
"""name -> (m, ...) values of each image, without gradient. `loss` and `contrast_acc` are always there. Entries of shape
(m,) are averaged into the run's metrics; others, such as new features, are for `remember` alone."""


class Method(nn.Module, Generic[Batch]):
    """A contrastive method: the maths of one global batch.

    The engine owns the order of images, the optimizer, the precision and the checkpoints. A subclass sets
    `chance_loss` and implements `prepare` and `loss`.

    Args:
        encoder_q: Encoder of the queries; parameters that take a gradient are trained.
        temperature: Softmax temperature T.
        layout: BatchNorm groups of the global batch, and the part of them that this rank computes.
        pixels: Module that turns uint8 views into what encoders read, one micro-batch at a time; None: the identity.
        term: How negatives enter the loss.

    """

    chance_loss: float
    """The loss while no positive can be told from its negatives, such as log(K + 1)."""

    def __init__(
        self,
        encoder_q: Encoder,
        *,
        temperature: float,
        layout: GroupLayout,
        pixels: nn.Module | None = None,
        term: NegativeTerm = PLAIN,
    ) -> None:
        super().__init__()
        require(temperature > 0, "method.temperature", temperature, "must be above 0; the papers use 0.07 to 1.0")
        self.encoder_q = encoder_q
        self.temperature = temperature
        self.layout = layout
        self.pixels = pixels or nn.Identity()
        self.forwards = GroupForward(layout, self.pixels)
        self.term = term

    def prepare(self, views: ViewBatch, step: int) -> Batch:
        """Return what the losses of the batch need: all that involves the whole batch at once.

        Args:
            views: This rank's n rows of the global batch.
            step: Optimizer steps done before; random draws depend on it.

        """
        raise NotImplementedError

    def loss(self, batch: Batch, micro: MicroBatch) -> tuple[Tensor, Rows]:
        """Return a micro-batch's share of the loss, and its rows.

        The share is a scalar to backpropagate; the shares of all micro-batches and ranks add up to the batch's mean
        loss, so each is a sum over images divided by B.
        """
        raise NotImplementedError

    def remember(self, batch: Batch, rows: Rows) -> None:
        """Update the method's memory, such as a queue; called after the optimizer step with all rows of this rank."""

    def gauges(self) -> dict[str, float]:
        """Return numbers of the method's own state for a log line, such as how full the queue is."""
        return {}


def cat_rows(parts: Sequence[Rows]) -> Rows:
    """Join the rows of all micro-batches: (m, ...) each -> (n, ...)."""
    return {name: torch.cat([rows[name] for rows in parts]) for name in parts[0]}


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Settings that every method has; a method adds its own in a subclass. They are table [method] of a run's TOML."""

    name: Annotated[str, flag("--method")]
    """The method: --method NAME or, for one that is not part of mocokit, --method-from PACKAGE.MODULE:SPEC."""
    temperature: Annotated[float, flag("--temperature")] = 0.2
    """Softmax temperature T."""
    bn_groups: Annotated[int, flag("--bn-groups")] = 8
    """Groups of the global batch that share BatchNorm statistics, whatever the number of devices; 1: global
    BatchNorm."""
    micro_groups: int = 0
    """Groups that go through the network at once, to save memory; 0: all. Does not change the run."""
    decoupled: bool = False
    """Leave the positive out of the loss's denominator (DCL, Yeh et al. 2021)."""
    hardness: float = 0.0
    """beta: negatives weigh exp(beta q.k/T), the harder the more (Robinson et al. 2021); 0: all alike."""

    def __post_init__(self) -> None:
        require(self.hardness >= 0, "method.hardness", self.hardness, "must be 0 (all negatives alike) or more")

    def check_batch(self, global_batch_size: int) -> None:
        """Raise ValueError if the method can't have batches of that size."""


@dataclass(frozen=True, kw_only=True)
class PatchSettings(MethodSettings):
    """Settings of methods whose queries can come from combinations of patches (nets/patches.py)."""

    patch_grid: int = 1
    """Cut a query view into this many patches a side; their combinations each make a query (Fast-MoCo: 2). 1: off."""
    patches_combined: int = 2
    """Patches of a combination."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.patch_grid <= 8, "method.patch_grid", self.patch_grid, "must be 1 (no patches) to 8")


@dataclass(frozen=True, kw_only=True)
class MethodInputs:
    """Objects and numbers, beside its settings, that a method is built from."""

    encoder_q: Encoder
    pixels: nn.Module
    layout: GroupLayout
    dim: int
    """C, the width of the embeddings."""
    global_batch_size: int
    """B."""
    num_images: int
    """Images of the data set."""
    total_steps: int
    """Optimizer steps of the whole run."""
    seed: int
    """The run's seed; draws use mocokit.randomness."""

    def shared(self, settings: MethodSettings) -> dict[str, Any]:
        """Return the arguments that `Method` itself takes, apart from the encoder."""
        return {
            "temperature": settings.temperature,
            "layout": self.layout,
            "pixels": self.pixels,
            "term": NegativeTerm(decoupled=settings.decoupled, hardness=settings.hardness),
        }

    @property
    def memory_seed(self) -> int:
        """Return the seed of the random rows that fill a queue or a bank at the start."""
        return torch_seed(self.seed, Purpose.QUEUE_INIT)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Forward and backward passes of a step, per image, from which `mocokit plan` computes its cost."""

    trained_views: int
    """Views that go forward and backward."""
    key_views: int = 0
    """Views that go forward only, through an encoder without predictor that follows the first."""
    num_trained: int = 1
    """Encoders that take a gradient."""
    joins_batch: bool = False
    """True if the gradient goes through all embeddings of the batch: with micro-batches, trained views go forward
    twice (gradient_cache.py)."""
    shuffled_views: int = 0
    """Views that ranks exchange to shuffle them."""
    gathered_rows: int = 0
    """Embeddings of an image that all ranks gather; an all-reduce of as many bytes counts as two."""

    def embeds_again(self, num_micro_batches: int) -> bool:
        """Return True if trained views go forward once more, without gradient, before all else."""
        return self.joins_batch and num_micro_batches > 1


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Facts of a run, beside its settings, that a method's warnings can depend on."""

    num_images: int
    """Images of the data set."""
    has_batchnorm: bool
    """True if the encoder has BatchNorm layers; without any, no statistics can leak."""


def build_moco_head(feature_dim: int, *, dim: int, mlp: bool) -> tuple[nn.Module, None]:
    """Return the fc head of MoCo v1 or the MLP head of MoCo v2, D -> C, and no predictor."""
    return build_head(feature_dim, dim, mlp=mlp), None


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """Everything that the rest of mocokit needs to know of a method; each method's file ends in one, called SPEC."""

    settings: type[MethodSettings]
    """Its settings class; the default of `name` is the method's name."""
    build: Callable[[Any, MethodInputs], Method[Any]]
    """(settings, inputs) -> the method in its first state."""
    passes: Callable[[Any], Passes]
    """settings -> what a step computes."""
    build_head: Callable[..., tuple[nn.Module, nn.Module | None]] = build_moco_head
    """(D, dim=C, **settings of [model] that are named in `model_settings`) -> (head, predictor or None)."""
    model_settings: Sequence[str] = ("mlp",)
    """Settings of table [model] that `build_head` takes; the others that describe a head do nothing here."""
    state_bytes: Callable[..., float] = lambda settings, *, dim, num_images: 0.0
    """(settings, dim=C, num_images=M) -> bytes of the method's memory, such as a queue."""
    warnings: Callable[[Any, RunFacts], list[str]] = lambda settings, facts: []
    """(settings, facts) -> what a user should know before the run starts."""

    @property
    def name(self) -> str:
        """Return the method's name, as in --method NAME."""
        return str(self.settings.__dataclass_fields__["name"].default)

    def heads(self, feature_dim: int, *, dim: int, model: Mapping[str, Any]) -> tuple[nn.Module, nn.Module | None]:
        """Return head and predictor for the settings of table [model]."""
        return self.build_head(feature_dim, dim=dim, **{name: model[name] for name in self.model_settings})
