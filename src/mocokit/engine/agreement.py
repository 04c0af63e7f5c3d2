"""What all ranks of a run must have in common, as short texts that are compared at the start."""

import functools
import hashlib
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mocokit import distributed


@functools.cache
def code_version() -> str:
    """Versions of mocokit and torch, and a hash of the package's sources as they are on this machine."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"mocokit {importlib.metadata.version('mocokit')} {digest.hexdigest()}, torch {torch.__version__}"


def bits_of(tensor: Tensor) -> memoryview:
    """The tensor's bits in memory, for a hash."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def fingerprints(method_state: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of each part of a method's state: `encoder_q`, `encoder_k`, `queue` and `queue pointer`."""
    digests: dict[str, Any] = {}
    for name, value in method_state.items():
        part = name.partition(".")[0]
        if isinstance(value, Tensor):
            content = bits_of(value)
        else:  # the queue's only: how many keys it has seen
            part = f"{part} pointer"
            content = memoryview(repr(value).encode())
        digest = digests.setdefault(part, hashlib.sha256())
        digest.update(f"{name} {getattr(value, 'shape', '')} {getattr(value, 'dtype', '')}".encode())
        digest.update(content)
    return {part: digest.hexdigest() for part, digest in digests.items()}


def raise_on_disagreement(describe: Callable[[], Mapping[str, str]]) -> None:
    """Raise ValueError on every rank when one of the values that `describe` names is not the same on all ranks.

    The message names the ranks that differ from what most have, and in what. A single process describes nothing.
    """
    if distributed.world_size() == 1:
        return
    values = describe()
    of_ranks = distributed.all_gather_objects(dict(values))
    usual = {name: Counter(other[name] for other in of_ranks).most_common(1)[0][0] for name in values}
    odd = {number: [name for name in values if other[name] != usual[name]] for number, other in enumerate(of_ranks)}
    problems = [
        f"rank {number} differs from the others in {', '.join(names)}" for number, names in odd.items() if names
    ]
    if problems:
        raise ValueError("; ".join(problems) + "; start every rank with the same command, package and files")
