"""What a table of a paper is: cells, each a preset with its differences and the numbers that the paper has for it."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A published number."""

    value: float
    """Percent; hours or gigabytes where the metric says so."""
    source: str
    """Where it is printed; "[paper recall]" where it is quoted from memory of the paper and not yet checked."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a table, the same for all seeds."""

    name: str
    """Its label, and the name of its folder."""
    preset: str
    settings: Mapping[str, object] = field(default_factory=dict)
    """What the paper changes from the preset."""
    small: Mapping[str, object] = field(default_factory=dict)
    """At small scale: settings instead of what `scales.shrink` makes of the paper's."""
    expected: Mapping[str, Expected] = field(default_factory=dict)
    """By metric; those that the paper doesn't have are absent."""
    series: str = ""
    """The curve that it belongs to."""
    x: float | None = None
    """Its place on the plot's axis; None: a bar of its own."""
    small_x: float | None = None
    """The same at small scale, where it differs."""

    @property
    def config(self) -> Config:
        """The run as the paper has it."""
        return replace_settings(get_preset(self.preset), self.settings)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table or figure of a paper."""

    name: str
    title: str
    source: str
    metrics: tuple[str, ...]
    """linear, AP50, AP, AP75: what the paper reports."""
    small_epochs: int
    """What 200 epochs of ImageNet become at small scale."""
    cells: tuple[Cell, ...]
    x_label: str = ""
    log_x: bool = False

    def chosen(self, names: Sequence[str]) -> tuple[Cell, ...]:
        """Those cells, in the table's order; all when none is named.

        Raises:
            ValueError: No such cell; the message names the nearest one.

        """
        known = [cell.name for cell in self.cells]
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"only={name}: no cell of {self.name}; did you mean {near}? All: {', '.join(known)}")
        return tuple(cell for cell in self.cells if not names or cell.name in names)
