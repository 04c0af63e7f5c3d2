"""Layouts of other projects' checkpoints: how keys tell the project, the backbone's keys, and what else is inside."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Keys of one project's checkpoints, without the leading `module.` of DistributedDataParallel."""

    name: str
    backbone: str
    """Prefix of the backbone's keys."""
    requires_any: tuple[str, ...] = ()
    """Prefixes of which at least one must occur, if the backbone's prefix is not specific enough; empty: none must."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Prefix of keys that are not the backbone -> plain name of that part."""
    renamed_archs: Mapping[str, str] = field(default_factory=dict)
    """Inferred architecture -> the project's own, where both have the same shapes but compute different features."""


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
        requires_any=("projection_head.", "backbone_momentum.", "query_backbone.", "key_backbone."),
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
        requires_any=("projector.", "momentum_backbone.", "classifier."),
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
        requires_any=("neck.", "data_preprocessor.", "encoder_k."),
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
"""Known layouts. The first that fits is used, so more specific ones come first."""


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """Parts of a checkpoint."""

    layout: Layout
    backbone: State
    """The backbone's weights under the project's names, without prefix."""
    left_out: dict[str, int]
    """Part that is not the backbone, such as "head" -> number of its tensors."""


def recognise(checkpoint: Mapping[str, Any]) -> Recognised:
    """Split a checkpoint into its backbone and other parts.

    Raises:
        ValueError: It holds no weights, or has keys that its layout does not know; the message lists them.

    """
    state = find_weights(checkpoint)
    layout = next(layout for layout in LAYOUTS if _fits(layout, state))
    backbone = State()
    left_out = Counter[str]()
    unknown = list[str]()
    for key, value in state.items():
        parts = [part for prefix, part in layout.left_out.items() if key.startswith(prefix)]
        if parts:
            left_out[parts[0]] += 1
        elif key.startswith(layout.backbone):
            backbone[key.removeprefix(layout.backbone)] = value
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"looks like {layout.name}, but has unknown keys: {shorten(unknown)}")
    return Recognised(layout=layout, backbone=backbone, left_out=dict(left_out))


def _fits(layout: Layout, state: State) -> bool:
    """Return True if the layout's prefixes occur among the keys."""
    has_backbone = any(key.startswith(layout.backbone) for key in state)
    return has_backbone and (not layout.requires_any or any(key.startswith(layout.requires_any) for key in state))


def find_weights(checkpoint: Mapping[str, Any]) -> State:
    """Return the state dict inside a checkpoint, without `module.` in front of its keys.

    Raises:
        ValueError: There is none, or mocokit wrote the checkpoint.

    """
    if "method" in checkpoint and "step" in checkpoint:
        raise ValueError("mocokit wrote this checkpoint; use its run folder, or the backbone.safetensors in it")
    for state in _candidates(checkpoint):
        tensors = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise ValueError(f"holds no weights; its keys are {shorten(list(map(str, checkpoint)))}")


def _candidates(checkpoint: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the dictionaries that may be the state dict, the likeliest first."""
    match checkpoint.get("classy_state_dict"):  # VISSL
        case {"base_model": {"model": {"trunk": dict(trunk), "heads": dict(heads)}}}:
            yield {**trunk, **{f"heads.{key}": value for key, value in heads.items()}}
    for name in ("teacher", "state_dict", "model_state_dict", "model"):  # DINO evaluates its teacher
        if isinstance(checkpoint.get(name), dict):
            yield checkpoint[name]
    yield checkpoint


def shorten(keys: list[str], *, most: int = 12) -> str:
    """Return the keys as one text: at most the first `most`, and how many more there are."""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
