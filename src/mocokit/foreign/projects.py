"""Tell projects apart by the names in their checkpoints, and say which of several networks in a file is taken."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

OFFICIAL = "official MoCo v1/v2"
MOCO_V3 = "official MoCo v3"
SOLO = "solo-learn"
LIGHTLY = "lightly"
SUPCON = "SupCon"
BOLTS = "lightning-bolts"
PLAIN = "a plain state dict"


@dataclass(frozen=True, kw_only=True)
class Project:
    """Names by which a project is recognised."""

    name: str
    all_of: tuple[str, ...]
    """Starts of names that must all occur."""
    any_of: tuple[str, ...] = ()
    """Starts of names of which one must occur; empty: none must."""


PROJECTS = (
    Project(name=BOLTS, all_of=("encoder_q.", "val_queue")),
    Project(name="mmselfsup (encoder_q)", all_of=("encoder_q.0.", "encoder_q.1.")),
    Project(name=OFFICIAL, all_of=("encoder_q.", "encoder_k.")),
    Project(name="mmselfsup", all_of=("backbone.", "neck.")),
    Project(name="mmselfsup", all_of=("backbone.",), any_of=("data_preprocessor.", "target_net.", "encoder_k.")),
    Project(name=MOCO_V3, all_of=("base_encoder.",)),
    Project(name="VISSL", all_of=("_feature_blocks.",)),
    Project(
        name=LIGHTLY,
        all_of=("backbone.",),
        any_of=(
            *("projection_head.", "prediction_head.", "backbone_momentum.", "anchor_backbone.", "query_backbone."),
            *("key_backbone.", "backbone.vit.", "backbone.mask_token"),
        ),
    ),
    Project(name=LIGHTLY, all_of=("student_backbone.", "teacher_backbone.")),
    Project(name="Barlow Twins", all_of=("backbone.", "projector.", "bn.")),
    Project(name=SOLO, all_of=("backbone.",), any_of=("classifier.", "momentum_backbone.", "projector.")),
    Project(name="DINOv2", all_of=("backbone.", "dino_head.")),
    Project(name="DINO", all_of=("backbone.", "head.")),
    Project(name="SimSiam", all_of=("encoder.", "predictor.")),
    Project(name="SimCLR (Spijkervet)", all_of=("encoder.", "projector.")),
    Project(name=SUPCON, all_of=("encoder.", "head.")),
    Project(name="SimCLR (sthalles)", all_of=("backbone.fc.",)),
    Project(name=BOLTS, all_of=("online_network.", "target_network.")),
    Project(name="SwAV", all_of=("projection_head.", "prototypes.")),
    Project(name="MAE", all_of=("decoder_embed.", "mask_token")),
    Project(name="DINOv2", all_of=("mask_token", "blocks.0.", "cls_token")),
)
"""Known projects. The first whose names occur is used, so more specific ones come first."""


def name_project(names: Iterable[str], prefix: str) -> str:
    """Return the project that writes such names, or a description.

    Args:
        names: Names of all tensors beside the backbone, without wrappers.
        prefix: Start of the backbone's names.

    """
    starts = tuple(names)
    for project in PROJECTS:
        if all(any(name.startswith(start) for name in starts) for start in project.all_of) and (
            not project.any_of or any(name.startswith(project.any_of) for name in starts)
        ):
            return project.name
    return f"a network at {prefix}" if prefix else PLAIN


SECOND = frozenset({"student"})
LAST = frozenset({"momentum", "ema", "target", "key", "k", "anchor"})
"""Words in a network's name, between dots and underscores; see `preference`."""

HEADS = re.compile(
    r"fc|head|heads|\w+_heads?|\w*classifier\w*|\w*projector\w*|\w*projection\w*|\w*predict\w*|\w*prototypes?\w*|"
    r"\w*queue\w*|momentum_\w+|decoder\w*|mask_token|neck\w*|\w*criterion\w*|\w*loss\w*|last_layer|last_linear|linear|"
    r"lin|mlp|center|temperature|logit_scale|n_averaged|centroids|assignments|local_memory\w*"
)
"""Parts inside a network that stand behind its features, or beside them in training: features are the same without."""


def preference(path: str) -> int:
    """Return which of several networks in a file is taken: the one with the lowest number.

    0: the trained network, and the teacher where there is a student (DINO evaluates its teacher). 1: the student.
    2: averages of the trained network, by their names: momentum, EMA, target, key, and MSN's anchor.
    """
    words = set(re.split(r"[._]", path))
    return 2 if words & LAST else 1 if words & SECOND else 0
