"""Declare and check settings: the flag of a field, its allowed values, and a choice by name. Imports no torch."""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def flag(name: str) -> Any:
    """Return the annotation that gives a field a short flag, such as `--epochs` beside `--optim.epochs`."""
    return tyro.conf.arg(aliases=(name,))


def require(holds: bool, setting: str, value: object, message: str) -> None:
    """Raise ValueError, "setting=value: message", unless `holds`."""
    if not holds:
        raise ValueError(f"{setting}={value}: {message}")


def choose(setting: str, name: str, choices: Mapping[str, T]) -> T:
    """Return the value of that name.

    Raises:
        ValueError: Unknown name; the message names `setting`, the nearest name and all names.

    """
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{setting}={name!r}: unknown; {hint}choose one of {list(choices)}")
    return choices[name]
