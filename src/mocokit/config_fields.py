"""What the parts of a config are made with."""

from typing import Any

import tyro


def flag(name: str) -> Any:
    """The short form of a dotted flag, part of the command line's contract."""
    return tyro.conf.arg(aliases=(name,))


def require(holds: bool, setting: str, value: object, message: str) -> None:
    """Raise ValueError about a setting's value unless `holds`."""
    if not holds:
        raise ValueError(f"{setting}={value}: {message}")
