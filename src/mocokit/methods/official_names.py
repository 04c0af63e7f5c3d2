"""The names of facebookresearch/moco for what a MoCo method holds, and back (moco/builder.py).

There, an encoder is torchvision's network whose `fc` is the head; here it is `backbone` and `head`.
"""


def ours(official: str) -> str:
    """Name within an encoder of ours: fc.* is the head, the rest the backbone."""
    return f"head.{official.removeprefix('fc.')}" if official.startswith("fc.") else f"backbone.{official}"


def official(name: str) -> str:
    """Name within an official encoder."""
    part, rest = name.split(".", 1)
    return f"fc.{rest}" if part == "head" else rest


def is_parameter(name: str) -> bool:
    """Whether a state dict's entry is a parameter, which an optimizer numbers, not a BatchNorm statistic."""
    return not name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))
