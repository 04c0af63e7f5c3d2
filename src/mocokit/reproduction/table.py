"""A table of a paper: cells, each a preset with changed settings and the paper's numbers for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.settings import choose


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A published number and its source."""

    value: float
    """Percent."""
    source: str
    """Where it is printed. "[paper recall]": quoted from memory of the paper, not checked yet."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a table. It is repeated with several seeds."""

    name: str
    """Label in the table and name of its folder."""
    preset: str
    settings: Mapping[str, object] = field(default_factory=dict)
    """Settings that the paper changes from the preset."""
    small: Mapping[str, object] = field(default_factory=dict)
    """Settings at small scale; they replace what `small_scale.shrink` computes."""
    expected: Mapping[str, Expected] = field(default_factory=dict)
    """Metric -> the paper's number. Metrics that the paper does not report are absent."""
    series: str = ""
    """Curve of the plot that the cell belongs to."""
    x: float | None = None
    """Position on the plot's x axis; None: the cell is a bar."""
    small_x: float | None = None
    """Position on the x axis at small scale; None: `x`."""

    @property
    def config(self) -> Config:
        """Config of the paper's run."""
        return replace_settings(get_preset(self.preset), self.settings)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table or figure of a paper."""

    name: str
    title: str
    source: str
    metrics: tuple[str, ...]
    """Metrics that the paper reports, of linear, AP50, AP and AP75. The plot shows the first."""
    small_epochs: int
    """Epochs at small scale for 200 epochs of ImageNet."""
    cells: tuple[Cell, ...]
    x_label: str = ""
    """Label of the plot's x axis; empty: the plot is a bar chart."""
    log_x: bool = False

    def choose_cells(self, names: Sequence[str]) -> tuple[Cell, ...]:
        """Return the named cells in the table's order, or all cells if `names` is empty.

        Raises:
            ValueError: Unknown name; the message gives the nearest name and all names.

        """
        by_name = {cell.name: cell for cell in self.cells}
        for name in names:
            choose("only", name, by_name)
        return tuple(cell for cell in self.cells if not names or cell.name in names)
