"""Rename a network's weights from other libraries' names to torchvision's (ResNets) or timm's (ViTs)."""

import re

from mocokit.export.to_torchvision import vit_names
from mocokit.foreign.weights import State

SEQUENTIAL = re.compile(r"(\d+)\.0\.conv1\.weight")

LAYERS = ("layer1", "layer2", "layer3", "layer4")

MM_NAMES = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.(?:ln|norm)(\d)\.", r"blocks.\1.norm\2."),
    (r"^layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"^layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"^layers\.", "blocks."),
    (r"^(?:ln1|norm1)\.", "norm."),
)
"""Pattern of a name in mmpretrain's and mmselfsup's ViT -> name in timm."""

DINOV2_NAMES = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # chunks of blocks for FSDP; the second number counts through
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^register_tokens$", "reg_token"),
)
"""Pattern of a name in DINOv2's ViT -> name in timm. SwiGLU's w12 holds both input projections, as timm's fc1 does."""


def rename_backbone(state: State) -> State:
    """Return the weights under torchvision's names (ResNets) or timm's (ViTs); unknown names stay.

    Raises:
        ValueError: A ResNet in nn.Sequential that computes something which no backbone of mocokit does.

    """
    if "conv_proj.weight" in state:  # torchvision's ViT
        names = {theirs: ours for ours, theirs in vit_names(depth=64).items()}
        return {names.get(name, name): value for name, value in state.items()}
    if "patch_embed.projection.weight" in state:
        return _substitute(state, MM_NAMES)
    if "patch_embed.proj.weight" in state:
        return _place_class_position(_substitute(state, DINOV2_NAMES))
    if "0.weight" in state and any(SEQUENTIAL.fullmatch(name) for name in state):
        return _name_children(state)
    if any(".shortcut." in name for name in state):  # SupCon, and other ResNets made after pytorch-cifar
        return {name.replace(".shortcut.", ".downsample."): value for name, value in state.items()}
    return state


def has_shortcut_names(state: State) -> bool:
    """Return True for SupCon's names, whose 3x3 stem pads by 1 and has no max-pool."""
    return any(".shortcut." in name for name in state)


def _substitute(state: State, patterns: tuple[tuple[str, str], ...]) -> State:
    """Return the state with each pattern replaced in each name, in order."""
    renamed = State()
    for name, value in state.items():
        ours = name
        for pattern, replacement in patterns:
            ours = re.sub(pattern, replacement, ours)
        renamed[ours] = value
    return renamed


def _place_class_position(state: State) -> State:
    """Return a DINOv2 ViT with registers as timm has it: the class token's position is added to the class token."""
    registers = state.get("reg_token")
    positions = state.get("pos_embed")
    if registers is None or positions is None or positions.ndim != 3 or "cls_token" not in state:
        return state
    if registers.ndim != 3 or state["cls_token"].shape != positions[:, :1].shape:
        return state
    if round(positions.shape[1] ** 0.5) ** 2 == positions.shape[1]:  # a whole grid, without the class token: timm's own
        return state
    return state | {"cls_token": state["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}


def _name_children(state: State) -> State:
    """Return a ResNet of nn.Sequential under torchvision's names.

    torchvision's children are conv1, bn1, ReLU, max-pool, layer1 to layer4, average pool, fc. Their places tell what
    was left out: the layers start at 4 with ReLU and max-pool, at 3 without max-pool, at 2 without both.
    """
    places = sorted({int(match[1]) for match in map(SEQUENTIAL.fullmatch, state) if match})
    first = places[0]
    if first <= 2:
        # lightly's ResNetGenerator calls ReLU as a function after bn1. It is no child module, so
        # nn.Sequential(*children) lacks it. Names and shapes alone would pass as a resnet18 with other features.
        raise ValueError(
            "this ResNet in nn.Sequential has no ReLU after its first BatchNorm, as lightly's ResNetGenerator, "
            "which no backbone of mocokit computes; give lightly a torchvision ResNet instead"
        )
    if first == 3 and state["0.weight"].shape[2:] != (3, 3):
        raise ValueError("this ResNet in nn.Sequential has no max-pool after its 7x7 stem, unlike mocokit's")
    children = {"0": "conv1", "1": "bn1", **{str(first + number): name for number, name in enumerate(LAYERS)}}
    renamed = State()
    for name, value in state.items():
        child, dot, rest = name.partition(".")
        behind = child.isdigit() and int(child) > first + 3  # what stands behind the layers is a head
        renamed[f"{'fc.' + child if behind else children.get(child, child)}{dot}{rest}"] = value
    return renamed
