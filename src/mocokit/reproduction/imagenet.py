"""The commands that fill a cell at the paper's scale, ready to paste."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from mocokit.config.toml import to_flags
from mocokit.reproduction.results import cell_folder
from mocokit.reproduction.table import Cell, Table

LAUNCH = "torchrun --nproc-per-node 8 -m mocokit"
"""As in the papers: 8 GPUs of one machine."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things are, as the commands should name them."""

    out: Path
    imagenet: str = "imagenet"
    """Folder with `train` and `val`."""
    voc: str = "voc"
    """Folder with VOC2007 and VOC2012."""


def commands(table: Table, cell: Cell, places: Places, *, seed: int = 0, trials: int = 5) -> list[list[str]]:
    """Arguments of `mocokit`: pre-train, linear classification and, where the paper reports it, detection."""
    run = str(cell_folder(places.out, table.name, cell.name, seed))
    train = f"{places.imagenet}/train"
    val = f"{places.imagenet}/val"
    protocol = "simclr" if cell.config.method.name == "simclr" else "moco"  # each paper's own
    of_seed = ["--seed", str(seed), "--out", run]
    lines = [
        ["pretrain", cell.preset, "--data", train, *to_flags(cell.settings), *of_seed],
        ["linear", run, "--data", train, "--test", val, "--protocol", protocol],
    ]
    if "AP" in table.metrics:
        lines.append(["detect", run, "--data", places.voc, "--out", f"{run}/detection", "--trials", str(trials)])
    return lines


def shell_line(arguments: list[str]) -> str:
    """One command as typed; pre-training runs on 8 GPUs."""
    launcher = LAUNCH if arguments[0] == "pretrain" else "mocokit"
    return f"{launcher} {shlex.join(arguments)}"
