"""Learn from a checkpoint's settings what its weights do not tell: padding, heads, image size, normalisation.

What nothing tells is asked for where it changes features (padding, heads), and assumed and told where it only prepares
images (their size, mean and standard deviation). Each answer comes with its source.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mocokit.foreign.projects import MOCO_V3, SOLO, SUPCON
from mocokit.foreign.vits import AMBIGUOUS, MOCO_V3_HEADS, TIMM_HEADS, VitShape, fixed_positions
from mocokit.foreign.weights import State
from mocokit.nets.pixels import IMAGENET_MEAN, IMAGENET_STD
from mocokit.settings import require

CIFAR = ("cifar10", "cifar100")

SOLO_NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
}
"""Data set -> mean and standard deviation in solo-learn (solo/data/pretrain_dataloader.py)."""

IMAGE_SIZES = ("image_size", "img_size", "crop_size", "input_size", "input_height", "imsize", "resolution")
"""Names that projects give the side of their images."""


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Everything that a user may tell about a checkpoint; what is None is found in the file."""

    arch: str | None = None
    """Backbone; None: inferred from names and shapes."""
    prefix: str | None = None
    """Start of the backbone's names; None: found, by the order of `preference` if several networks fit."""
    ignore: Sequence[str] = ()
    """Patterns (`*` and `?`) of names that are left out, for parts that are not known."""
    padding: int | None = None
    """Padding of a 3x3 first convolution, 1 or 2; None: from the checkpoint's settings."""
    heads: int | None = None
    """Heads of a ViT; None: from the checkpoint's settings or its fixed positions."""
    image_size: int | None = None
    """Side of its training images (pixels); None: from positions or settings, else 224, or 32 for a small stem."""
    mean: Sequence[float] | None = None
    """Mean of each channel, in 0..1, that its images were normalised with; None: the checkpoint's, else ImageNet's."""
    std: Sequence[float] | None = None
    """Standard deviation of each channel, in 0..1; None: likewise."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something about the network that its weights do not tell, and who told it."""

    name: str
    value: object
    source: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value} ({self.source})"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that may tell something about the network beside its weights."""

    project: str
    settings: Mapping[str, object]
    """Dotted names and values of the checkpoint's settings."""
    state: State
    """Tensors beside the backbone."""

    def find(self, *names: str) -> list[tuple[str, object]]:
        """Return (dotted name, value) of the settings whose last part is one of `names`."""
        return [(path, value) for path, value in self.settings.items() if path.rpartition(".")[2].lower() in names]

    def first(self, *names: str) -> object:
        """Return the value of the first setting whose last part is one of `names`; None if there is none."""
        return next((value for _, value in self.find(*names)), None)


def find_padding(evidence: Evidence, given: int | None, *, shortcut_names: bool) -> Fact:
    """Return the padding of a 3x3 first convolution: 1 or 2.

    Raises:
        ValueError: Nothing tells it, or the network has a max-pool or stride that no backbone of mocokit has.

    """
    if given is not None:
        require(given in (1, 2), "padding", given, "a 3x3 first convolution pads by 1 or 2 pixels here")
        return Fact(name="padding", value=given, source="given")
    for path, value in evidence.find("conv1_padding", "stem_padding", "first_conv_padding"):
        require(value in (1, 2), "padding", value, f"the checkpoint's {path}; no backbone of mocokit pads so")
        return Fact(name="padding", value=value, source=f"the checkpoint's {path}")
    dataset = evidence.first("dataset")
    if evidence.project == SOLO and (dataset in CIFAR or evidence.first("cifar") is True):
        return Fact(name="padding", value=2, source="solo-learn's for CIFAR, by the checkpoint's settings")
    if evidence.first("first_conv") is False:  # lightning-bolts
        if evidence.first("maxpool1") is not False:
            raise ValueError(
                "its 3x3 stem is followed by a max-pool (first_conv False, maxpool1 True), unlike mocokit's"
            )
        return Fact(name="padding", value=1, source="lightning-bolts', by the checkpoint's first_conv and maxpool1")
    if shortcut_names:
        return Fact(name="padding", value=1, source=f"{SUPCON}'s and pytorch-cifar's, by the names of its shortcuts")
    raise ValueError(
        "its first convolution is 3x3, and neither weights nor settings tell its padding: say --padding 2 for "
        "solo-learn on CIFAR, --padding 1 for most others (stride 1 and no max-pool in both)"
    )


def find_heads(evidence: Evidence, given: int | None, shape: VitShape, state: State) -> Fact:
    """Return the number of heads of a ViT.

    Raises:
        ValueError: Nothing tells it, or it does not divide the width.

    """
    fact = _heads(evidence, given, shape, state)
    heads = fact.value
    good = type(heads) is int and heads > 0 and shape.width % heads == 0
    require(good, "heads", heads, f"does not divide the width of {shape.width} ({fact.source})")
    return fact


def _heads(evidence: Evidence, given: int | None, shape: VitShape, state: State) -> Fact:
    """Return the number of heads, from the strongest source that says one."""
    if given is not None:
        return Fact(name="heads", value=given, source="given")
    for path, value in evidence.find("num_heads"):
        if type(value) is int and "decoder" not in path:
            return Fact(name="heads", value=value, source=f"the checkpoint's {path}")
    fixed = "" if shape.arguments["no_embed_class"] else fixed_positions(state)
    if shape.width in MOCO_V3_HEADS:
        heads = MOCO_V3_HEADS[shape.width]
        if fixed == "MoCo v3" or evidence.project == MOCO_V3:
            return Fact(name="heads", value=heads, source="MoCo v3's, by its fixed positions or names")
        method = evidence.first("method")
        if evidence.project == SOLO and isinstance(method, str):
            heads = heads if method in ("mae", "mocov3") else TIMM_HEADS[shape.width]
            return Fact(name="heads", value=heads, source=f"solo-learn's for method {method}")
    if source := _why_timms(evidence, shape, fixed):
        return Fact(name="heads", value=TIMM_HEADS[shape.width], source=source)
    raise ValueError(_ask_for_heads(shape.width))


def _why_timms(evidence: Evidence, shape: VitShape, fixed: str) -> str:
    """Return why a ViT has as many heads as timm's of its width; empty if nothing tells that."""
    if shape.width not in TIMM_HEADS:
        return ""
    if shape.width not in AMBIGUOUS:
        return f"each known project's for a width of {shape.width}; --heads"
    if shape.layer_scale:
        return "DINOv2's, by its LayerScale; --heads"
    if _is_dino(evidence):
        return "DINO's, by the checkpoint's settings"
    if not fixed and shape.width == 192:  # only solo-learn's MoCo v3 and MAE have 12, and both have fixed positions
        return "DeiT's and timm's for a width of 192 with learned positions; --heads"
    return ""


def _is_dino(evidence: Evidence) -> bool:
    """Return True for the official DINO: its settings hold `arch` and `out_dim`, and its ViT-S has 6 heads."""
    arch = evidence.first("arch")
    return evidence.project == "DINO" and isinstance(arch, str) and arch in ("vit_small", "deit_small", "vit_tiny")


def _ask_for_heads(width: int) -> str:
    """Return the question for the heads."""
    if width in TIMM_HEADS:
        known = f"--heads {TIMM_HEADS[width]} for timm, DeiT and DINO, --heads {MOCO_V3_HEADS[width]} for MoCo v3"
        known += " and for solo-learn's MoCo v3 and MAE"
    else:
        known = "--heads N"
    return f"neither weights nor settings tell the heads of a ViT of width {width}: say {known}"


def find_image_size(evidence: Evidence, given: int | None, shape: VitShape | None, *, small: bool) -> Fact:
    """Return the side of the training images (pixels)."""
    if given is not None:
        return Fact(name="image size", value=given, source="given")
    if shape is not None:
        return Fact(name="image size", value=shape.image_size, source="by its grid of positions")
    found = [(_side(value), path) for path, value in evidence.find(*IMAGE_SIZES) if "small" not in path.lower()]
    sizes = [(side, path) for side, path in found if side]
    if sizes:
        side, path = max(sizes)  # the largest crop
        return Fact(name="image size", value=side, source=f"the checkpoint's {path}")
    if evidence.first("dataset") in CIFAR:
        return Fact(name="image size", value=32, source="the checkpoint's dataset")
    return Fact(name="image size", value=32 if small else 224, source="assumed from the stem; --image-size")


def _side(value: object) -> int:
    """Return the side of an image from a setting's value: a number, or a pair of equal ones; else 0."""
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]
    return value if type(value) is int and 8 <= value <= 2048 else 0


def find_normalisation(
    evidence: Evidence, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Fact, tuple[float, ...], tuple[float, ...]]:
    """Return the fact to print, the mean, and the standard deviation of each channel, in 0..1."""
    found = _normalisation(evidence)
    source, default_mean, default_std = found or ("ImageNet's, assumed; --mean --std", IMAGENET_MEAN, IMAGENET_STD)
    if mean is not None and std is not None:
        source = "given"
    elif mean is not None or std is not None:
        source = f"given in part; the rest {source}"
    chosen_mean = _three(mean) if mean is not None else default_mean
    chosen_std = _three(std) if std is not None else default_std
    text = ", ".join(f"{value:.3g}" for value in (*chosen_mean, *chosen_std))
    return Fact(name="mean and std", value=text, source=source), chosen_mean, chosen_std


def _normalisation(evidence: Evidence) -> tuple[str, tuple[float, ...], tuple[float, ...]] | None:
    """Return source, mean and std that a checkpoint holds; None if it holds none."""
    tensors = [evidence.state.get(f"data_preprocessor.{name}") for name in ("mean", "std")]  # mmselfsup
    if all(tensor is not None and tensor.numel() == 3 for tensor in tensors):
        mean, std = (_three(tensor.double().flatten().tolist()) for tensor in tensors if tensor is not None)
        if min(std) > 0:
            return "the checkpoint's data_preprocessor", mean, std
    means = [value for _, value in evidence.find("mean") if _is_channels(value)]
    stds = [value for _, value in evidence.find("std") if _is_channels(value)]
    if means and stds and all(one == means[0] for one in means) and all(one == stds[0] for one in stds):
        return "the checkpoint's settings", _three(means[0]), _three(stds[0])  # type: ignore[arg-type]
    dataset = evidence.first("dataset")
    if evidence.project == SOLO and isinstance(dataset, str) and dataset in SOLO_NORMALISATION:
        return f"solo-learn's for {dataset}", *SOLO_NORMALISATION[dataset]
    return None


def _is_channels(value: object) -> bool:
    """Return True for a list of three positive numbers."""
    return isinstance(value, list) and len(value) == 3 and min(value) > 0


def _three(values: Iterable[float]) -> tuple[float, ...]:
    """Return the values of R, G and B in 0..1; numbers above 1 are in 0..255."""
    numbers = tuple(float(value) for value in values)
    require(len(numbers) == 3 and all(map(math.isfinite, numbers)), "mean", numbers, "one number for each of R, G, B")
    return tuple(round(number / 255, 6) for number in numbers) if max(numbers) > 1 else numbers
