"""Recognise folders that mocokit wrote, so that pictures in them do not become training images."""

from collections.abc import Collection

_MARKS = (frozenset({"config.toml", "checkpoints"}), frozenset({"table.json", "table.png"}))
"""Names that lie together in a run folder (its views.png is an image), and in a folder of `mocokit reproduce`."""


def is_own_output(names: Collection[str]) -> bool:
    """Return True for the names in a run folder, or in a folder of `mocokit reproduce`."""
    return any(mark.issubset(names) for mark in _MARKS)
