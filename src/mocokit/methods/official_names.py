"""Translate names of parameters between facebookresearch/moco (moco/builder.py) and mocokit.

An official encoder is a torchvision network whose `fc` is the head; ours has a `backbone` and a `head`.
"""


def ours(official: str) -> str:
    """Return our name, within an encoder, of an official one: fc.* is the head, all else the backbone."""
    return f"head.{official.removeprefix('fc.')}" if official.startswith("fc.") else f"backbone.{official}"


def official(name: str) -> str:
    """Return the official name, within an encoder, of one of ours."""
    part, rest = name.split(".", 1)
    return f"fc.{rest}" if part == "head" else rest


def is_parameter(name: str) -> bool:
    """Return True if an entry of a state dict is a parameter, which optimizers number, not a BatchNorm statistic."""
    return not name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))
