"""A run's settings: what the user asked for, frozen and checked.

Numbers derived from these are locals of whoever derives them, recorded in the run folder's `resolved.toml`, and never
written back here.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def _flag(name: str) -> Any:
    """The short form of a dotted flag, part of the command line's contract."""
    return tyro.conf.arg(aliases=(name,))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from and how they are read."""

    source: Annotated[str, _flag("--data")] = ""
    """Training images: a folder tree, .txt/.csv/.tsv list, .zip, .tar, IDX file, or tar shards (the folder that
    `mocokit pack` makes, or shards-{000..127}.tar; also s3://, gs://, https://); labels are not needed."""
    test: Annotated[str, _flag("--test")] = ""
    """Labelled images for the kNN monitor; empty: a tenth of the training images when they have labels."""
    image_size: Annotated[int, _flag("--image-size")] = 224
    """Side of a view (pixels)."""
    global_batch_size: Annotated[int, _flag("--global-batch-size")] = 256
    """Images per optimizer step over all ranks."""
    workers: Annotated[int, _flag("--workers")] = -1
    """Loader processes a rank that work ahead; 0: none, threads make each batch between the steps; -1: none where
    the CPU trains on local images, else the machine's cores, at most 16, shared by its ranks."""
    pipeline: Literal["fast", "reference"] = "fast"
    """fast: libjpeg-turbo and machine code; reference: Pillow and torchvision, several times slower."""
    mean: tuple[float, ...] = _IMAGENET_MEAN
    """Mean of each channel, 0..1; empty (with std): measured on the data."""
    std: tuple[float, ...] = _IMAGENET_STD
    """Standard deviation of each channel, 0..1."""
    eval_crop_ratio: float = 0.875
    """Evaluation: side of the central crop over the resized short side (224/256)."""
    max_bad_share: float = 0.01
    """Share of images that may be unreadable before the run stops."""
    max_image_px: int = 89_478_485
    """Larger images (width x height) are refused as decompression bombs."""

    def __post_init__(self) -> None:
        _require(self.image_size >= 8, "data.image_size", self.image_size, "must be at least 8 pixels")
        _require(
            self.global_batch_size >= 2,
            "data.global_batch_size",
            self.global_batch_size,
            "must be at least 2",
        )
        _require(-1 <= self.workers <= 1024, "data.workers", self.workers, "must be -1 (choose), 0 (none), or to 1024")
        _require(0 <= self.max_bad_share <= 1, "data.max_bad_share", self.max_bad_share, "must be in 0..1")
        _require(0 < self.eval_crop_ratio <= 1, "data.eval_crop_ratio", self.eval_crop_ratio, "must be in 0..1")
        _require(
            {len(self.mean), len(self.std)} in ({3}, {0}),
            "data.mean", self.mean, "needs 3 numbers, and data.std too; leave both empty to measure them",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How a view is drawn: one of the papers' recipes, and what to change in it."""

    on: Annotated[Literal["auto", "cpu", "device"], _flag("--augment-on")] = "auto"
    """Where color, blur and flip are done: by the loader's workers, or batched on the device; auto: on a GPU if the
    run has one."""
    aug_plus: Annotated[bool, _flag("--aug-plus")] = True
    """MoCo v2's aug+ (blur, jitter on 80 %, weaker hue); off: MoCo v1's (the paper's column "aug+")."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Share of the image's area that a crop covers."""
    jitter_p: float | None = None
    """Probability of the color jitter; None: the recipe's."""
    brightness: float | None = None
    """Strength of the brightness jitter; None: the recipe's. Likewise the next three."""
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    grayscale_p: float | None = None
    """Probability of grayscale; None: the recipe's."""
    blur_p: float | None = None
    """Probability of Gaussian blur; None: the recipe's."""
    blur_radius_px: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's radius (pixels of the view)."""
    flip_p: float | None = None
    """Probability of a horizontal flip; None: the recipe's."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, "augment.crop_scale", self.crop_scale, "needs 0 < low <= high <= 1")
        _require(
            0 <= self.blur_radius_px[0] <= self.blur_radius_px[1],
            "augment.blur_radius_px", self.blur_radius_px, "needs 0 <= low <= high",
        )  # fmt: skip
        for name in ("jitter_p", "grayscale_p", "blur_p", "flip_p"):
            _require(
                0 <= (getattr(self, name) or 0) <= 1,
                f"augment.{name}",
                getattr(self, name),
                "must be in 0..1",
            )
        _require(
            0 <= (self.hue or 0) <= 0.5,
            "augment.hue",
            self.hue,
            "must be in 0..0.5 (turns of the colour circle)",
        )
        for name in ("brightness", "contrast", "saturation"):
            _require((getattr(self, name) or 0) >= 0, f"augment.{name}", getattr(self, name), "must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder: backbone and head."""

    arch: Annotated[str, _flag("--arch")] = "resnet50"
    """Backbone: a torchvision ResNet, vit_small_patch16_224 or its like, or any model of timm as timm/NAME."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """First layers: ImageNet's (7x7 stride 2, max-pool), or 3x3 stride 1 for small images."""
    mlp: Annotated[bool, _flag("--mlp")] = True
    """Two-layer MLP head (the paper's column "MLP"); off: one fc layer."""
    dim: int = 128
    """Embedding dimension C."""

    def __post_init__(self) -> None:
        _require(self.dim >= 2, "model.dim", self.dim, "must be at least 2")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Momentum contrast."""

    queue_size: int = 65536
    """Number of negative keys K (MoCo v1 sec. 4)."""
    temperature: Annotated[float, _flag("--temperature")] = 0.2
    """Softmax temperature T."""
    key_momentum: float = 0.999
    """m of the key encoder's moving average."""
    bn_groups: Annotated[int, _flag("--bn-groups")] = 8
    """Groups of the global batch that share BatchNorm statistics, whatever the number of devices."""
    micro_groups: int = 0
    """Groups that go through the network at once, to save memory; 0: all. Does not change the run."""
    shuffle: bool = True
    """Shuffling BN: keys are normalised in other company than their queries."""
    mask_same_image: bool = False
    """Leave out negatives that come from the query's own image (small data sets)."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """SGD and its schedule."""

    epochs: Annotated[int, _flag("--epochs")] = 200
    """Passes over the data."""
    lr: Annotated[float, _flag("--lr")] = 0.03
    """Peak learning rate, for the global batch as it is: never scaled behind your back."""
    cos: Annotated[bool, _flag("--cos")] = True
    """Half-cosine schedule (the paper's column "cos"); off: x0.1 at each of `milestones`."""
    milestones: tuple[int, ...] = (120, 160)
    """Epochs at which the rate drops when cos is off."""
    lr_by: Literal["epoch", "step"] = "epoch"
    """Change the rate every epoch, as officially, or every step."""
    warmup_epochs: float = 0.0
    """Linear warm-up."""
    sgd_momentum: float = 0.9
    """Momentum of the optimizer."""
    weight_decay: float = 1e-4
    """On all parameters."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "optim.epochs", self.epochs, "must be at least 1")
        _require(self.lr > 0, "optim.lr", self.lr, "must be above 0")
        _require(0 <= self.sgd_momentum < 1, "optim.sgd_momentum", self.sgd_momentum, "must be in 0..1, below 1")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must be 0 or more")
        _require(
            0 <= self.warmup_epochs < self.epochs,
            "optim.warmup_epochs",
            self.warmup_epochs,
            "must be below epochs",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Machine and book-keeping; changes no number but through precision."""

    seed: Annotated[int, _flag("--seed")] = 0
    """All randomness derives from it."""
    device: Annotated[str, _flag("--device")] = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Annotated[Literal["auto", "fp32", "fp64", "bf16", "fp16"], _flag("--precision")] = "auto"
    """Number format of forward and backward passes (bf16, fp16: autocast); auto: bf16 where the hardware has it, else
    fp32. The papers' presets say fp32."""
    channels_last: bool = True
    """Memory layout that convolutions prefer."""
    compile: bool = False
    """torch.compile both encoders."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    save_minutes: float = 10.0
    """Minutes between checkpoints; one is written at the end of each epoch too."""
    keep_last: int = 2
    """Checkpoints to keep."""
    knn_every: int = 10
    """Epochs between kNN evaluations when labels exist; 0: none. The last epoch always has one."""
    knn_k: int = 20
    """Neighbours of the monitor."""
    knn_temperature: float = 0.07
    """Weight of a neighbour: exp(cosine / this)."""
    knn_max_images: int = 10_000
    """Bank size of the monitor; its queries are at most a fifth of it."""

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "run.seed", self.seed, "must be in 0..2**63-1")
        _require(self.log_every >= 1, "run.log_every", self.log_every, "must be at least 1")
        _require(self.keep_last >= 1, "run.keep_last", self.keep_last, "must be at least 1")
        _require(self.save_minutes > 0, "run.save_minutes", self.save_minutes, "must be above 0")
        _require(self.knn_every >= 0, "run.knn_every", self.knn_every, "must be 0 (never) or more")
        _require(self.knn_k >= 1, "run.knn_k", self.knn_k, "must be at least 1")
        _require(self.knn_temperature > 0, "run.knn_temperature", self.knn_temperature, "must be above 0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that defines a pre-training run."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _require(
            self.method.queue_size >= self.data.global_batch_size,
            "method.queue_size", self.method.queue_size,
            f"smaller than data.global_batch_size={self.data.global_batch_size}; raise one or lower the other",
        )  # fmt: skip


def _require(holds: bool, setting: str, value: object, message: str) -> None:
    if not holds:
        raise ValueError(f"{setting}={value}: {message}")
