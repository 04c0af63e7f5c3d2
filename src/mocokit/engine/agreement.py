"""Digests of code and weights, and a check at the start that all ranks have the same of everything."""

import functools
import hashlib
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import PIL
import torch
from torch import Tensor, nn

from mocokit import distributed


@functools.cache
def code_version() -> str:
    """Return the versions of mocokit, torch and Pillow, which decide pixels, and the SHA-256 of our source files."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    versions = f"torch {torch.__version__}, Pillow {PIL.__version__}"
    return f"mocokit {importlib.metadata.version('mocokit')} {digest.hexdigest()}, {versions}"


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's values, for a hash; a tensor on a GPU is copied to the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def digest_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the SHA-256 of each tensor's bits, by name."""
    return {name: hashlib.sha256(tensor_bytes(tensor)).hexdigest() for name, tensor in tensors.items()}


def weights_digest(module: nn.Module) -> str:
    """Return one SHA-256 of the names and bits of all parameters and buffers."""
    parts = digest_tensors({**dict(module.named_parameters()), **dict(module.named_buffers())})
    return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()


def fingerprints(method_state: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each part of a method's state: `encoder_q`, `encoder_k`, `queue` and `queue pointer`."""
    digests: dict[str, Any] = {}
    for name, value in method_state.items():
        part = name.partition(".")[0]
        if isinstance(value, Tensor):
            content = tensor_bytes(value)
        else:  # the only other value of a state: the number of keys that the queue has received
            part = f"{part} pointer"
            content = memoryview(repr(value).encode())
        digest = digests.setdefault(part, hashlib.sha256())
        digest.update(f"{name} {getattr(value, 'shape', '')} {getattr(value, 'dtype', '')}".encode())
        digest.update(content)
    return {part: digest.hexdigest() for part, digest in digests.items()}


def raise_on_disagreement(describe: Callable[[], Mapping[str, str]]) -> None:
    """Raise ValueError on every rank if a value of `describe()` is not the same on all ranks.

    The message names the ranks that differ from the majority, and the values in which they differ. A single process
    does not call `describe`, which may be slow.
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
