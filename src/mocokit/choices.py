"""Names to values in plain dicts; a wrong name lists the right ones."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def choose(setting: str, name: str, choices: Mapping[str, T]) -> T:
    """The value of that name.

    Raises:
        ValueError: Unknown; the message names `setting`, the nearest name and all names.

    """
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{setting}={name!r}: unknown; {hint}choose one of {list(choices)}")
    return choices[name]
