"""Find the state dicts inside a checkpoint, and its plain settings."""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mocokit.foreign.pickled import Inert

State = dict[str, Tensor]

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Parts of a key that DistributedDataParallel, torch.compile, FSDP, checkpointing and Fabric put in, at any place."""

NO_MODEL = re.compile(r"optim|sched|scaler|loops|callbacks|message_hub|rng|_metadata|momentum_buffer", re.IGNORECASE)
"""Names of entries that hold tensors but no network."""

SETTINGS = re.compile(r"hyper_?parameters|hparams|args|opt|cfg|config|meta", re.IGNORECASE)
"""Names of entries that hold settings. A module among them is the one that training began with."""

MAX_DEPTH = 12
MAX_ENTRIES = 50_000
"""Bounds for walks through what a stranger wrote; real checkpoints nest 6 deep and hold some thousand settings."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One dictionary of tensors in a checkpoint."""

    path: str
    """Place in the checkpoint, such as "state_dict"; empty: the checkpoint itself."""
    state: State
    """Its tensors, without the wrappers' parts of the names."""
    wrappers: tuple[str, ...]
    """Wrappers' parts that were taken out of the names."""


def find_groups(content: Any) -> list[Group]:
    """Return all dictionaries of tensors in a checkpoint but those of optimizers, outer ones first.

    A whole module that was pickled (`torch.save(model)`) counts as its state dict.
    """
    groups = []
    for path, entry in _dictionaries(content):
        tensors = {str(key): value for key, value in entry.items() if isinstance(value, Tensor)}
        if tensors:
            state, wrappers = strip_wrappers(tensors)
            groups.append(Group(path=path, state=state, wrappers=wrappers))
    return groups


def _dictionaries(content: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield each dictionary in a checkpoint with its path, breadth first; shared and circular ones once."""
    waiting = deque([("", content, 0)])
    seen = set[int]()
    while waiting and len(seen) < MAX_ENTRIES:
        path, value, depth = waiting.popleft()
        entry = _as_dictionary(value)
        if entry is None or id(value) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(value))
        yield path, entry
        for key, inner in entry.items():
            skipped = NO_MODEL.search(str(key)) or SETTINGS.fullmatch(str(key))
            if isinstance(inner, dict | Inert) and not skipped:
                waiting.append((f"{path}.{key}" if path else str(key), inner, depth + 1))


def _as_dictionary(value: Any) -> Mapping[Any, Any] | None:
    """Return a dictionary, the entries of an unknown kind of dictionary, or the state of a pickled module."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Inert):
        if isinstance(value.state, dict) and "_modules" in value.state:
            return _module_state(value)
        return value.items or None
    return None


def _module_state(module: Inert) -> State:
    """Return the state dict of a pickled torch module."""
    state = State()
    waiting = deque([("", module)])
    seen = set[int]()
    while waiting and len(seen) < MAX_ENTRIES:
        prefix, part = waiting.popleft()
        if id(part) in seen or not isinstance(part.state, dict):
            continue
        seen.add(id(part))
        for kind in ("_parameters", "_buffers"):
            entries = part.state.get(kind)
            if isinstance(entries, dict):
                state |= {f"{prefix}{key}": value for key, value in entries.items() if isinstance(value, Tensor)}
        parts = part.state.get("_modules")
        if isinstance(parts, dict):
            waiting.extend((f"{prefix}{key}.", inner) for key, inner in parts.items() if isinstance(inner, Inert))
    return state


def strip_wrappers(tensors: State) -> tuple[State, tuple[str, ...]]:
    """Return the state with names like the bare module's, and the wrappers' parts that were taken out.

    Names stay as they are if two of them would become one.
    """
    removed = dict[str, None]()
    names = dict[str, str]()
    for name in tensors:
        parts = name.split(".")
        kept = [part for part in parts[:-1] if part not in WRAPPERS] + parts[-1:]
        removed |= dict.fromkeys(part for part in parts[:-1] if part in WRAPPERS)
        names[name] = ".".join(kept)
    if len(set(names.values())) < len(names):
        return tensors, ()
    return {names[name]: value for name, value in tensors.items()}, tuple(removed)


def plain_settings(content: Any) -> dict[str, object]:
    """Return dotted name -> number, text, bool or list of numbers, of everything in a checkpoint that is no tensor.

    Entries of argparse's Namespace, OmegaConf, mmengine's Config and of any other class are found too, because these
    are records here (`Inert`).
    """
    found = dict[str, object]()
    waiting = deque([("", content, 0)])
    seen = set[int]()
    while waiting and len(seen) < MAX_ENTRIES:
        path, value, depth = waiting.popleft()
        value = _unwrapped(value)
        if value is None or isinstance(value, str | int | float):
            found[path] = value
            continue
        if isinstance(value, tuple | list) and value and all(isinstance(item, int | float) for item in value):
            found[path] = list(value[:16])
        if isinstance(value, Tensor) or id(value) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(value))
        for key, inner in _children(value):
            if not NO_MODEL.search(str(key)) or str(key).endswith("optimizer"):
                waiting.append((f"{path}.{key}" if path else str(key), inner, depth + 1))
    return found


def _unwrapped(value: Any) -> Any:
    """Return the value inside an OmegaConf node; other values as they are."""
    for _ in range(MAX_DEPTH):
        state = value.state if isinstance(value, Inert) else None
        if not isinstance(state, dict):
            break
        inner = [state[name] for name in ("_content", "_val") if name in state]
        if not inner:
            break
        value = inner[0]
    return value


def _children(value: Any) -> list[tuple[Any, Any]]:
    """Return (name, value) of the entries of a dictionary, list or record, at most the first thousand."""
    if isinstance(value, dict):
        return list(value.items())[:1000]
    if isinstance(value, list | tuple):
        return list(enumerate(value[:1000]))
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, dict) else {}
        attributes = [(key, inner) for key, inner in state.items() if not str(key).startswith("_")]
        return [*list(value.items.items())[:1000], *attributes[:1000], *enumerate(value.elements[:1000])]
    return []


def shorten(keys: list[str], *, most: int = 12) -> str:
    """Return the keys as one text: at most the first `most`, and how many more there are."""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(key[:200] for key in keys[:most]) + more
