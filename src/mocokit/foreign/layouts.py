"""Which project wrote a checkpoint, told by its keys; where in it the backbone lies, and what else it holds."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Keys of one project's checkpoints, after a leading `module.` (DistributedDataParallel) is taken off."""

    name: str
    backbone: str
    """Prefix of the backbone's keys."""
    marks: tuple[str, ...] = ()
    """Prefixes of which one at least must occur, where the backbone's says too little."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Prefix of keys that are not the backbone -> what they are."""
    renamed_archs: Mapping[str, str] = field(default_factory=dict)
    """Backbones that have the shapes of another one but compute something else."""


OFFICIAL = Layout(
    name="official MoCo v1/v2",
    backbone="encoder_q.",
    left_out={"encoder_q.fc.": "head", "encoder_k.": "key encoder", "queue": "queue"},
)

LAYOUTS = (
    Layout(
        name="mmselfsup (encoder_q)",
        backbone="encoder_q.0.",
        left_out={"encoder_q.1.": "neck", "encoder_k.": "key encoder", "queue": "queue", "head.": "head"},
    ),
    OFFICIAL,
    Layout(
        name="official MoCo v3",
        backbone="base_encoder.",
        left_out={
            "base_encoder.fc.": "projector",
            "base_encoder.head.": "projector",
            "predictor.": "predictor",
            "momentum_encoder.": "momentum encoder",
        },
        renamed_archs={"vit_small_patch16_224": "vit_small_patch16_224_h12"},
    ),
    Layout(name="VISSL", backbone="_feature_blocks.", left_out={"heads.": "heads"}),
    Layout(
        name="lightly",
        backbone="backbone.",
        marks=("projection_head.", "backbone_momentum.", "query_backbone.", "key_backbone."),
        left_out={
            "projection_head": "projection head",
            "prediction_head.": "prediction head",
            "criterion.": "loss",
            "backbone_momentum.": "momentum backbone",
            "query_": "query encoder",
            "key_": "key encoder",
            "online_classifier.": "online classifier",
        },
    ),
    Layout(
        name="solo-learn",
        backbone="backbone.",
        marks=("projector.", "momentum_backbone.", "classifier."),
        left_out={
            "projector.": "projector",
            "predictor.": "predictor",
            "classifier.": "classifier",
            "queue": "queue",
            "momentum_": "momentum encoder",
        },
    ),
    Layout(
        name="mmselfsup",
        backbone="backbone.",
        marks=("neck.", "data_preprocessor.", "encoder_k."),
        left_out={
            "neck.": "neck",
            "head.": "head",
            "encoder_k.": "key encoder",
            "queue": "queue",
            "data_preprocessor.": "mean and std",
        },
    ),
    Layout(name="DINO", backbone="backbone.", left_out={"head.": "head"}),
    Layout(
        name="a plain state dict",
        backbone="",
        left_out={"fc.": "classifier", "head.": "classifier", "heads.": "classifier"},
    ),
)
"""The first that fits is taken."""


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """A checkpoint, taken apart."""

    layout: Layout
    backbone: State
    """Under the project's names, without prefix."""
    left_out: dict[str, int]
    """What is not the backbone -> its number of tensors."""


def recognise(checkpoint: Mapping[str, Any]) -> Recognised:
    """Take a checkpoint apart.

    Raises:
        ValueError: It holds no weights, or keys that the layout does not know; the message lists them.

    """
    state = find_weights(checkpoint)
    layout = next(layout for layout in LAYOUTS if _fits(layout, state))
    backbone = State()
    left_out = Counter[str]()
    unknown = list[str]()
    for key, value in state.items():
        known = [what for prefix, what in layout.left_out.items() if key.startswith(prefix)]
        if known:
            left_out[known[0]] += 1
        elif key.startswith(layout.backbone):
            backbone[key.removeprefix(layout.backbone)] = value
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"looks like {layout.name}, but has unknown keys: {shorten(unknown)}")
    return Recognised(layout=layout, backbone=backbone, left_out=dict(left_out))


def _fits(layout: Layout, state: State) -> bool:
    has_backbone = any(key.startswith(layout.backbone) for key in state)
    return has_backbone and (not layout.marks or any(key.startswith(layout.marks) for key in state))


def find_weights(checkpoint: Mapping[str, Any]) -> State:
    """The state dict within a checkpoint, without `module.` in front of its keys.

    Raises:
        ValueError: There is none, or it is a checkpoint of mocokit's own.

    """
    if "method" in checkpoint and "step" in checkpoint:
        raise ValueError("a checkpoint of mocokit's own; use the run folder, or the backbone.safetensors in it")
    for state in _places(checkpoint):
        tensors = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise ValueError(f"holds no weights; its keys are {shorten(list(checkpoint))}")


def _places(checkpoint: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Dictionaries that may be the state dict, the likeliest first."""
    vissl = checkpoint.get("classy_state_dict")
    if isinstance(vissl, dict):
        model = vissl["base_model"]["model"]
        yield {**model["trunk"], **{f"heads.{key}": value for key, value in model["heads"].items()}}
    for name in ("teacher", "state_dict", "model_state_dict", "model"):  # DINO evaluates its teacher
        if isinstance(checkpoint.get(name), dict):
            yield checkpoint[name]
    yield checkpoint


def shorten(keys: list[str], *, most: int = 12) -> str:
    """The keys, or the first of them and how many more there are."""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
