"""Settings of the contrastive methods and of their optimizers, and which of them a choice makes meaningless."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Annotated, Literal

from mocokit.settings import flag, require

METHODS = ("moco", "end-to-end", "memory-bank", "simclr", "moco-v3")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The contrastive method: where a query's negatives come from."""

    name: Annotated[Literal["moco", "end-to-end", "memory-bank", "simclr", "moco-v3"], flag("--method")] = "moco"
    """moco: a queue of keys (v1, v2); end-to-end: the batch, both encoders trained; memory-bank: stored features of
    all images; simclr: the batch, one encoder; moco-v3: the batch, momentum keys and a predictor."""
    queue_size: int = 65536
    """Number of negative keys K (MoCo v1 sec. 4). moco."""
    temperature: Annotated[float, flag("--temperature")] = 0.2
    """Softmax temperature T."""
    key_momentum: float = 0.999
    """m of the key encoder's moving average. moco, moco-v3."""
    key_momentum_cos: bool = False
    """m rises to 1 by a half cosine. moco-v3."""
    bn_groups: Annotated[int, flag("--bn-groups")] = 8
    """Groups of the global batch that share BatchNorm statistics, whatever the number of devices; 1: global
    BatchNorm."""
    micro_groups: int = 0
    """Groups that go through the network at once, to save memory; 0: all. Does not change the run."""
    shuffle: bool = True
    """Shuffling BN: keys are normalised in other company than their queries. moco, end-to-end."""
    mask_same_image: bool = False
    """Leave out negatives that come from the query's own image (small data sets). moco."""
    symmetric: bool = False
    """Add the loss with the two views' roles exchanged. moco."""
    decoupled: bool = False
    """Leave the positive out of the loss's denominator (DCL, Yeh et al. 2021)."""
    hardness: float = 0.0
    """beta: negatives weigh exp(beta q.k/T), the harder the more (Robinson et al. 2021); 0: all alike."""
    patch_grid: int = 1
    """Cut a query view into so many patches a side, whose combinations each make a query (Fast-MoCo has 2); 1: none.
    moco, moco-v3."""
    patches_combined: int = 2
    """Patches of a combination."""
    num_negatives: int = 65536
    """Features drawn from the bank each step, K. memory-bank."""
    feature_momentum: float = 0.5
    """Weight of an image's old feature when its new one comes in. memory-bank."""

    def __post_init__(self) -> None:
        require(self.name in METHODS, "method.name", repr(self.name), f"choose one of {list(METHODS)}")
        require(self.num_negatives >= 1, "method.num_negatives", self.num_negatives, "must be at least 1")
        require(self.hardness >= 0, "method.hardness", self.hardness, "must be 0 (all negatives alike) or more")
        require(1 <= self.patch_grid <= 8, "method.patch_grid", self.patch_grid, "must be 1 (no patches) to 8")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule."""

    name: Annotated[Literal["sgd", "lars", "lars-classic", "adamw"], flag("--optimizer")] = "sgd"
    """sgd: MoCo v1 and v2; lars: MoCo v3 on ResNets; lars-classic: SimCLR; adamw: MoCo v3 on ViTs."""
    epochs: Annotated[int, flag("--epochs")] = 200
    """Passes over the data."""
    lr: Annotated[float, flag("--lr")] = 0.03
    """Peak learning rate, for the global batch as it is: never scaled behind your back."""
    cos: Annotated[bool, flag("--cos")] = True
    """Half-cosine schedule (the paper's column "cos"); off: x0.1 at each of `milestones`."""
    milestones: tuple[int, ...] = (120, 160)
    """Epochs at which the rate drops when cos is off."""
    lr_by: Literal["epoch", "step"] = "epoch"
    """Change the rate every epoch, as officially, or every step."""
    warmup_epochs: float = 0.0
    """Linear warm-up."""
    sgd_momentum: float = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: float = 1e-4
    """On all parameters; LARS leaves out biases and BatchNorm."""
    clip_norm: float = 0.0
    """Scale a step's gradient down to this length (over all parameters) when it is longer; 0: never."""
    trust_coefficient: float = 0.001
    """LARS: share of its own length by which a weight moves at rate 1."""

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


LARS = ("lars", "lars-classic")

ABOVE_0 = range(1, 2**63)

USED_BY: dict[str, tuple[str, Container[object]]] = {
    "method.queue_size": ("method.name", ("moco",)),
    "method.key_momentum": ("method.name", ("moco", "moco-v3")),
    "method.key_momentum_cos": ("method.name", ("moco-v3",)),
    "method.shuffle": ("method.name", ("moco", "end-to-end")),
    "method.mask_same_image": ("method.name", ("moco",)),
    "method.symmetric": ("method.name", ("moco",)),
    "method.patch_grid": ("method.name", ("moco", "moco-v3")),
    "method.patches_combined": ("method.patch_grid", range(2, 9)),
    "method.num_negatives": ("method.name", ("memory-bank",)),
    "method.feature_momentum": ("method.name", ("memory-bank",)),
    "model.mlp": ("method.name", ("moco", "end-to-end", "memory-bank")),
    "model.head_layers": ("method.name", ("simclr", "moco-v3")),
    "model.head_width": ("method.name", ("moco-v3",)),
    "model.predictor_bn": ("method.name", ("moco-v3",)),
    "optim.trust_coefficient": ("optim.name", LARS),
    "optim.sgd_momentum": ("optim.name", ("sgd", *LARS)),
    "augment.aug_plus": ("augment.recipe", ("moco",)),
    "augment.local_size": ("augment.local_crops", ABOVE_0),
    "augment.local_scale": ("augment.local_crops", ABOVE_0),
}
"""Setting -> (the choice, the values of it that make use of the setting); all other settings are always used."""
