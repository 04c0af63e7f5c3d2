"""Start real `mocokit` processes and read what they leave behind."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mocokit.config.schema import Config
from mocokit.config.toml import to_dict
from mocokit.engine.checkpoint import list_checkpoints, load_checkpoint
from mocokit.engine.run_folder import RunFolder
from tests.forked_ranks import RunningRanks


def flags_of(config: Config) -> list[str]:
    """Return the config as flags of `mocokit pretrain`."""
    flags: list[str] = []
    for section, values in to_dict(config).items():
        for name, value in values.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(f"--{section}.{'' if value else 'no-'}{flag}")
            elif value is not None and value != "":
                flags += [f"--{section}.{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags


def start_process(
    arguments: list[str], *, ranks: int = 0, program: Sequence[str] = ("-m", "mocokit"), **environment: str
) -> subprocess.Popen[str]:
    """Start `python -m mocokit` or another program as a user would, under torchrun if `ranks` is not 0."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    return subprocess.Popen(
        [sys.executable, *launcher, *program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def start(
    arguments: list[str], *, ranks: int = 0, program: Sequence[str] = ("-m", "mocokit"), **environment: str
) -> RunningRanks:
    """Start `python -m mocokit` or another program in one process, or in `ranks` processes of one process group.

    The processes are forked from one that has imported torch and mocokit: importing takes 4 s of CPU time, and the
    suite starts more than 100 processes. Where torchrun itself is tested, use `start_process`.

    Args:
        arguments: Command line after the program.
        ranks: Number of processes that get torchrun's environment; 0: one process without it.
        program: ("-m", module) or (path of a script,).
        **environment: Variables to set.

    """
    return RunningRanks([*program, *arguments], ranks=ranks, environment=environment)


def finish(process: RunningRanks | subprocess.Popen[str], *, within_s: float = 240) -> tuple[int, str]:
    """Wait for the process, and return its exit code and output."""
    out, err = process.communicate(timeout=within_s)
    return process.returncode, out + err


def wait_for_step(run: Path, step: int, *, within_s: float = 120) -> None:
    """Return as soon as the run has logged `step` steps. The run must log each step."""
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + within_s
    while not (log.exists() and log.read_text().count('"loss"') >= step):
        assert time.monotonic() < deadline, f"{run} did not reach step {step} within {within_s:g} s"
        time.sleep(0.02)


def final_state(run: Path) -> dict[str, Any]:
    """Return the newest checkpoint of a run."""
    return load_checkpoint(list_checkpoints(RunFolder(run).checkpoints)[-1])


def same(a: Any, b: Any) -> bool:
    """Return True if two nested states are bit-equal."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
