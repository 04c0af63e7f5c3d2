"""The settings of a run: what the user asked for, frozen and checked.

Numbers that are derived from settings are written to the run folder's `resolved.toml`, never back into a config. The
settings of a method are declared in the method's own file, in methods/.
"""

import math
from collections.abc import Container
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from mocokit.data.augment.recipes import EVAL_CROP_RATIO
from mocokit.data.sources.limits import MAX_IMAGE_PX
from mocokit.methods import method_of
from mocokit.methods.contract import MethodSettings
from mocokit.methods.moco import MoCoSettings
from mocokit.settings import flag, require


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Source of the images, and how they are read."""

    source: Annotated[str, flag("--data")] = ""
    """Training images: a folder tree, .txt/.csv/.tsv list, .zip, .tar, IDX file, CIFAR as distributed, or tar shards
    (the folder that `mocokit pack` makes, or shards-{000..127}.tar; also s3://, gs://, https://); labels are not
    needed."""
    test: Annotated[str, flag("--test")] = ""
    """Labelled images for the kNN monitor; empty: the test part of a split (train/, val/), else a tenth of the training
    images, when they have labels."""
    label_column: Annotated[str, flag("--label-column")] = ""
    """Column of the labels of a .csv or .tsv list, by its header or number; CIFAR-100: fine or coarse."""
    path_column: Annotated[str, flag("--path-column")] = ""
    """Column of the paths of a .csv or .tsv list."""
    image_size: Annotated[int, flag("--image-size")] = 224
    """Side of a view (pixels)."""
    first_image_size: int = 0
    """Side of a view in the first epoch. It grows to image_size during the first half of the run, so that early epochs
    are cheap; 0: image_size in all epochs."""
    global_batch_size: Annotated[int, flag("--global-batch-size")] = 256
    """Images per optimizer step over all ranks."""
    workers: Annotated[int, flag("--workers")] = -1
    """Loader processes per rank, which work ahead; 0: none, threads make each batch between the steps; -1: as many as
    the machine has cores, at most 16, divided among its ranks."""
    pipeline: Literal["fast", "reference"] = "fast"
    """fast: libjpeg-turbo and machine code; reference: Pillow and torchvision, several times slower."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel, 0..1, by default ImageNet's; empty (with std): measured on the data."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, 0..1."""
    value_range: tuple[float, ...] = ()
    """Values of samples of more than 8 bits that become 0 and 255; empty: percentiles measured on the images. 8-bit
    images stay as they are."""
    eval_crop_ratio: float = EVAL_CROP_RATIO
    """Evaluation: side of the central crop over the resized short side (224/256)."""
    max_bad_share: float = 0.01
    """Share of images that may be unreadable before the run stops."""
    max_image_px: int = MAX_IMAGE_PX
    """Larger images (width x height) are refused as decompression bombs."""

    def __post_init__(self) -> None:
        require(self.image_size >= 8, "data.image_size", self.image_size, "must be at least 8 pixels")
        require(
            self.first_image_size == 0 or 8 <= self.first_image_size <= self.image_size,
            "data.first_image_size",
            self.first_image_size,
            f"must be 0 (off) or 8 to image_size={self.image_size}",
        )
        require(
            self.global_batch_size >= 2,
            "data.global_batch_size",
            self.global_batch_size,
            "must be at least 2",
        )
        require(-1 <= self.workers <= 1024, "data.workers", self.workers, "must be -1 (choose), 0 (none), or to 1024")
        require(0 <= self.max_bad_share <= 1, "data.max_bad_share", self.max_bad_share, "must be in 0..1")
        require(0 < self.eval_crop_ratio <= 1, "data.eval_crop_ratio", self.eval_crop_ratio, "must be in 0..1")
        require(
            not self.value_range or (len(self.value_range) == 2 and self.value_range[0] < self.value_range[1]),
            "data.value_range",
            self.value_range,
            "needs two numbers LOW < HIGH; leave it empty to measure them",
        )
        require(
            {len(self.mean), len(self.std)} in ({3}, {0}),
            "data.mean",
            self.mean,
            "needs 3 numbers, and data.std too; leave both empty to measure them",
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of the views: one of the papers' recipes, and changes to it."""

    on: Annotated[Literal["auto", "cpu", "device"], flag("--augment-on")] = "auto"
    """Place of color, blur and flip: the loader's workers (cpu), or batched on the device; auto: on a GPU if the run
    has one, with fewer than 8 cores beside it."""
    recipe: Literal["moco", "moco-v3", "simclr"] = "moco"
    """moco: the same recipe for both views, see aug_plus; moco-v3: its pair of recipes, the second with solarization;
    simclr: SimCLR's recipe for both views."""
    aug_plus: Annotated[bool, flag("--aug-plus")] = True
    """MoCo v2's aug+ (blur, jitter on 80 %, weaker hue); off: MoCo v1's (the paper's column "aug+")."""
    crop_scale: tuple[float, float] | None = None
    """Share of the image's area that a crop covers; None: the recipe's (simclr: 0.08 1, the others 0.2 1)."""
    jitter_p: float | None = None
    """Probability of the color jitter; None: the recipe's."""
    brightness: float | None = None
    """Strength of the brightness jitter; None: the recipe's."""
    contrast: float | None = None
    """Strength of the contrast jitter; None: the recipe's."""
    saturation: float | None = None
    """Strength of the saturation jitter; None: the recipe's."""
    hue: float | None = None
    """Strength of the hue jitter (turns of the colour circle, to 0.5); None: the recipe's."""
    grayscale_p: float | None = None
    """Probability of grayscale; None: the recipe's."""
    blur_p: float | None = None
    """Probability of Gaussian blur; None: the recipe's."""
    blur_radius_px: tuple[float, float] | None = None
    """Range of the blur's radius (pixels of the view); None: the recipe's."""
    bicubic: bool | None = None
    """Resize crops by the bicubic filter, or by the bilinear one; None: the recipe's (simclr: bicubic)."""
    flip_p: float | None = None
    """Probability of a horizontal flip; None: the recipe's."""
    local_crops: int = 0
    """V small crops an image, each a further query of the image's keys: multi-crop (SwAV sec. 3.2, with V = 6)."""
    local_size: int = 96
    """Side of a local crop (pixels); SwAV's, beside views of 224."""
    local_scale: tuple[float, float] = (0.05, 0.14)
    """Share of the image's area that a local crop covers; SwAV's, whose views have crop_scale 0.14 1."""

    def __post_init__(self) -> None:
        for name in ("crop_scale", "local_scale"):
            low, high = getattr(self, name) or (1, 1)
            require(0 < low <= high <= 1, f"augment.{name}", (low, high), "needs 0 < low <= high <= 1")
        require(self.local_crops >= 0, "augment.local_crops", self.local_crops, "must be 0 (none) or more")
        require(self.local_size >= 8, "augment.local_size", self.local_size, "must be at least 8 pixels")
        low, high = self.blur_radius_px or (0, 0)
        require(0 <= low <= high, "augment.blur_radius_px", self.blur_radius_px, "needs 0 <= low <= high")
        for name in ("jitter_p", "grayscale_p", "blur_p", "flip_p"):
            require(
                0 <= (getattr(self, name) or 0) <= 1,
                f"augment.{name}",
                getattr(self, name),
                "must be in 0..1",
            )
        require(
            0 <= (self.hue or 0) <= 0.5,
            "augment.hue",
            self.hue,
            "must be in 0..0.5 (turns of the colour circle)",
        )
        for name in ("brightness", "contrast", "saturation"):
            require((getattr(self, name) or 0) >= 0, f"augment.{name}", getattr(self, name), "must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder: backbone and head."""

    arch: Annotated[str, flag("--arch")] = "resnet50"
    """Backbone: a torchvision ResNet, vit_small_patch16_224 or its like, or any model of timm as timm/NAME."""
    stem: Literal["imagenet", "small", "small_pad2"] = "imagenet"
    """First layers: ImageNet's (7x7 stride 2, max-pool), or 3x3 stride 1 for small images."""
    mlp: Annotated[bool, flag("--mlp")] = True
    """Two-layer MLP head (the paper's column "MLP"); off: one fc layer."""
    dim: int = 128
    """Embedding dimension C."""
    head_layers: int = 2
    """Layers of the head. simclr: 2 (v1), 3 (v2); moco-v3: 2 (ResNet), 3 (ViT)."""
    head_width: int = 4096
    """Hidden width of the projector. moco-v3: 4096, fast-moco: 2048."""
    predictor_width: int | None = None
    """Hidden width of the predictor; None: head_width. fast-moco: 512."""
    predictor_bn: bool = False
    """BatchNorm at the predictor's end (ViT). moco-v3."""
    zero_init_residual: bool = False
    """ResNet: each residual branch starts as zero (SimCLR, MoCo v3)."""
    vit_init: Literal["timm", "moco-v3"] = "timm"
    """ViT: timm's initialisation, or MoCo v3's with sine-cosine positions that stay fixed."""
    freeze_patch_embed: bool = False
    """ViT: leave the patch projection as initialised, for stability (MoCo v3 sec. 4.2)."""

    def __post_init__(self) -> None:
        require(self.dim >= 2, "model.dim", self.dim, "must be at least 2")
        require(self.head_layers in (2, 3), "model.head_layers", self.head_layers, "must be 2 or 3")
        for name in ("head_width", "predictor_width"):
            require((getattr(self, name) or 1) >= 1, f"model.{name}", getattr(self, name), "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule."""

    name: Annotated[Literal["sgd", "lars", "lars-classic", "adamw"], flag("--optimizer")] = "sgd"
    """sgd: MoCo v1 and v2, Fast-MoCo; lars: MoCo v3 on ResNets; lars-classic: SimCLR; adamw: MoCo v3 on ViTs."""
    epochs: Annotated[int, flag("--epochs")] = 200
    """Passes over the data."""
    lr: Annotated[float, flag("--lr")] = 0.03
    """Peak learning rate, used as given: it is not scaled with the batch size."""
    schedule: Annotated[Literal["cosine", "step", "constant"], flag("--schedule")] = "cosine"
    """Learning rate over time: a half cosine (the paper's column "cos"), a step of x0.1 at each of `milestones`, or
    constant. --cos and --no-cos are short for cosine and step."""
    milestones: tuple[int, ...] = (120, 160)
    """Epochs at which the step schedule drops the rate."""
    lr_by: Literal["epoch", "step"] = "epoch"
    """Change the rate every epoch, as in the official code, or every step."""
    warmup_epochs: float = 0.0
    """Length of the linear warm-up (epochs), whose first step has the rate `warmup_from`."""
    warmup_from: float = 0.0
    """Learning rate of the first step of the warm-up, as a share of lr."""
    lr_end: Literal["after-last", "last"] = "after-last"
    """The schedule ends after the last step (epoch, if the rate changes by epoch), as in MoCo v1 to v3 and SimCLR, or
    with it, as in Fast-MoCo and the CIFAR notebook, which count from 1: the last rate of a cosine is then 0."""
    predictor_lr: Literal["scheduled", "constant"] = "scheduled"
    """sgd: the predictor's rate follows the schedule (MoCo v3), or is `lr` in all steps (Fast-MoCo)."""
    sgd_momentum: float = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: float = 1e-4
    """Weight decay of all parameters; LARS leaves out biases and BatchNorm."""
    clip_norm: float = 0.0
    """Largest length of a step's gradient, over all parameters: a longer one is scaled down; 0: no limit."""
    trust_coefficient: float = 0.001
    """LARS: length of a weight's update at rate 1, as a share of the weight's own length."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "optim.epochs", self.epochs, "must be at least 1")
        require(self.lr > 0, "optim.lr", self.lr, "must be above 0")
        require(0 <= self.sgd_momentum < 1, "optim.sgd_momentum", self.sgd_momentum, "must be in 0..1, below 1")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must be 0 or more")
        require(self.clip_norm >= 0, "optim.clip_norm", self.clip_norm, "must be 0 (never) or more")
        require(self.trust_coefficient > 0, "optim.trust_coefficient", self.trust_coefficient, "must be above 0")
        require(
            0 <= self.warmup_epochs < self.epochs,
            "optim.warmup_epochs",
            self.warmup_epochs,
            "must be below epochs",
        )
        require(0 <= self.warmup_from <= 1, "optim.warmup_from", self.warmup_from, "must be in 0..1, a share of lr")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Machine, log and checkpoints. Only seed and precision change the numbers of a run."""

    seed: Annotated[int, flag("--seed")] = 0
    """Seed of all randomness."""
    device: Annotated[str, flag("--device")] = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Annotated[Literal["auto", "fp32", "fp64", "bf16", "fp16"], flag("--precision")] = "auto"
    """Number format of forward and backward passes (bf16, fp16: autocast); auto: bf16 where the hardware has it, else
    fp32. The papers' presets say fp32."""
    channels_last: bool = True
    """Store images channels-last, in which convolutions are faster."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the encoders; auto: on a GPU, in runs long enough to win back the minutes of compiling."""
    shard: bool = False
    """Split every weight, gradient and optimizer state over the ranks (FSDP2), for ViT-L and larger."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    save_minutes: float = 10.0
    """Minutes between checkpoints; one is written at the end of each epoch too."""
    keep_last: int = 2
    """Checkpoints to keep."""
    rank_timeout_s: float = 600.0
    """Seconds that ranks wait for a missing one; then all of them end and name it."""
    alone_timeout_s: float = 3600.0
    """Seconds that ranks wait for one that evaluates or saves alone; then its data or disk is taken to be dead."""
    knn_every: int = 10
    """Epochs between kNN evaluations when labels exist; 0: none. The last epoch always has one."""
    knn_k: int = 20
    """Neighbours of the monitor."""
    knn_temperature: float = 0.07
    """Temperature of the monitor: a neighbour's weight is exp(cosine / temperature)."""
    knn_max_images: int = 10_000
    """Bank size of the monitor; its queries are at most a fifth of it."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "run.seed", self.seed, "must be in 0..2**63-1")
        require(not (self.shard and self.compile == "on"), "run.compile", self.compile, "not with run.shard; use auto")
        require(self.log_every >= 1, "run.log_every", self.log_every, "must be at least 1")
        require(self.keep_last >= 1, "run.keep_last", self.keep_last, "must be at least 1")
        require(self.save_minutes > 0, "run.save_minutes", self.save_minutes, "must be above 0")
        require(self.rank_timeout_s > 0, "run.rank_timeout_s", self.rank_timeout_s, "must be above 0")
        require(self.alone_timeout_s > 0, "run.alone_timeout_s", self.alone_timeout_s, "must be above 0")
        require(self.knn_every >= 0, "run.knn_every", self.knn_every, "must be 0 (never) or more")
        require(self.knn_k >= 1, "run.knn_k", self.knn_k, "must be at least 1")
        require(self.knn_max_images >= 2, "run.knn_max_images", self.knn_max_images, "must be at least 2")
        require(self.knn_temperature > 0, "run.knn_temperature", self.knn_temperature, "must be above 0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a pre-training run."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodSettings = field(default_factory=MoCoSettings)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        self._require_finite_numbers()
        for setting, why in ignored_settings(self).items():
            section, name = setting.split(".")
            value = getattr(getattr(self, section), name)
            require(
                value == getattr(self, section).__dataclass_fields__[name].default,
                setting,
                value,
                f"does nothing with {why}; leave it out",
            )
        if self.augment.local_crops:
            self._require_that_local_crops_fit()
        self.method.check_batch(self.data.global_batch_size)

    def _require_finite_numbers(self) -> None:
        for section in fields(self):
            for name, value in vars(getattr(self, section.name)).items():
                for number in value if isinstance(value, tuple) else (value,):
                    is_finite = not isinstance(number, float) or math.isfinite(number)
                    require(is_finite, f"{section.name}.{name}", value, "must be a finite number")

    def _require_that_local_crops_fit(self) -> None:
        smallest_px = self.data.first_image_size or self.data.image_size
        require(
            self.augment.local_size <= smallest_px,
            "augment.local_size",
            self.augment.local_size,
            f"larger than the views of {smallest_px} px; local crops are the smaller ones (SwAV: 96 of 224)",
        )
        grid = getattr(self.method, "patch_grid", 1)
        require(
            grid == 1,
            "augment.local_crops",
            self.augment.local_crops,
            f"not with method.patch_grid={grid}, which makes its queries of the view; choose one",
        )


HEAD_SETTINGS = ("mlp", "head_layers", "head_width", "predictor_width", "predictor_bn")
"""Settings of [model] that describe a head. A method uses only those that its SPEC lists in `model_settings`."""

LARS = ("lars", "lars-classic")

ABOVE_0 = range(1, 2**63)

USED_WITH: dict[str, tuple[str, Container[object]]] = {
    "method.patches_combined": ("method.patch_grid", range(2, 9)),
    "optim.trust_coefficient": ("optim.name", LARS),
    "optim.sgd_momentum": ("optim.name", ("sgd", *LARS)),
    "optim.predictor_lr": ("optim.name", ("sgd",)),
    "augment.aug_plus": ("augment.recipe", ("moco",)),
    "augment.local_size": ("augment.local_crops", ABOVE_0),
    "augment.local_scale": ("augment.local_crops", ABOVE_0),
}
"""Setting -> (another setting, and the values of that one with which the first is used). All others are always used."""


def ignored_settings(config: Config) -> dict[str, str]:
    """Return the settings that do nothing in this config, each with the setting that makes it useless."""
    ignored = {}
    for setting, (choice, values) in USED_WITH.items():
        section, name = choice.split(".")
        chosen = getattr(getattr(config, section), name, None)
        if chosen is not None and chosen not in values:
            ignored[setting] = f"{choice}={chosen}"
    for name in HEAD_SETTINGS:
        if name not in method_of(config.method).model_settings:
            ignored[f"model.{name}"] = f"method.name={config.method.name}"
    if "model.predictor_width" in ignored:  # a method without predictor
        ignored["optim.predictor_lr"] = f"method.name={config.method.name}"
    return ignored
