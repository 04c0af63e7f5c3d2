"""The commands that produce a cell's numbers at the paper's scale, ready to paste into a shell."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from mocokit.config.toml import to_flags
from mocokit.reproduction.results import cell_folder
from mocokit.reproduction.table import Cell, Table

LAUNCH = "torchrun --nproc-per-node 8 -m mocokit"
"""8 GPUs of one machine, as in the papers."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders, written into the commands as they are given here."""

    out: Path
    imagenet: str = "imagenet"
    """Folder with `train` and `val`."""
    voc: str = "voc"
    """Folder with VOC2007 and VOC2012."""


def commands(table: Table, cell: Cell, places: Places, *, seed: int = 0, trials: int = 5) -> list[list[str]]:
    """Return arguments of `mocokit`: pre-training, linear classification and, if the paper reports it, detection.

    Args:
        table: Table of the cell.
        cell: Cell to fill.
        places: Folders of runs and data.
        seed: Seed of pre-training.
        trials: Detection trials.

    """
    run = str(cell_folder(places.out, table.name, cell.name, seed))
    train = f"{places.imagenet}/train"
    val = f"{places.imagenet}/val"
    protocol = "simclr" if cell.config.method.name == "simclr" else "moco"  # the protocol of the method's own paper
    lines = [
        ["pretrain", cell.preset, "--data", train, *to_flags(cell.settings), "--seed", str(seed), "--out", run],
        ["linear", run, "--data", train, "--test", val, "--protocol", protocol],
    ]
    if "AP" in table.metrics:
        lines.append(["detect", run, "--data", places.voc, "--out", f"{run}/detection", "--trials", str(trials)])
    return lines


def shell_line(arguments: list[str]) -> str:
    """Return one command as typed in a shell; pre-training runs on 8 GPUs."""
    launcher = LAUNCH if arguments[0] == "pretrain" else "mocokit"
    return f"{launcher} {shlex.join(arguments)}"
