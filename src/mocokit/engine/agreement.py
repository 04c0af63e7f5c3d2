"""What all ranks of a run must have in common, as short texts that can be compared."""

import functools
import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


@functools.cache
def code_version() -> str:
    """Versions of mocokit and torch, and a hash of the package's sources as they are on this machine."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"mocokit {importlib.metadata.version('mocokit')} {digest.hexdigest()}, torch {torch.__version__}"


def fingerprints(method_state: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of each part of a method's state: `encoder_q`, `encoder_k`, `queue` and `queue pointer`."""
    digests: dict[str, Any] = {}
    for name, value in method_state.items():
        part = name.partition(".")[0]
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().reshape(-1)
            content = flat.view(torch.uint8).numpy().data
        else:  # the queue's only: how many keys it has seen
            part, content = f"{part} pointer", memoryview(repr(value).encode())
        digest = digests.setdefault(part, hashlib.sha256())
        digest.update(f"{name} {getattr(value, 'shape', '')} {getattr(value, 'dtype', '')}".encode())
        digest.update(content)
    return {part: digest.hexdigest() for part, digest in digests.items()}
