"""Runs for faults.py: started for real, watched through the files they write, compared bit by bit."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests' way to start a run

from tests.run_process import final_state, finish, start, wait_for_step

from mocokit.demo import sample_path

BATCH = 16
STEPS_PER_EPOCH = 5
FLAGS = [
    *("--global-batch-size", str(BATCH), "--bn-groups", "4", "--arch", "resnet10_w32", "--model.stem", "imagenet"),
    *("--image-size", "32", "--model.dim", "16", "--method.queue-size", "40", "--lr", "0.05", "--device", "cpu"),
    *("--run.log-every", "1", "--run.knn-every", "0", "--workers", "0", "--run.rank-timeout-s", "10"),
    *("--run.save-minutes", "0.002"),  # about every third step
]


class Runs:
    """Runs in one folder, all of the same 80 images and settings.

    Args:
        work: Folder of their run folders.
        steps: Length of each.
        ranks: Processes of those with several.

    """

    def __init__(self, work: Path, *, steps: int, ranks: int) -> None:
        self.work, self.steps, self.ranks = work, steps, ranks
        self.photos = make_photos(work / "photos")

    def arguments(self, out: Path, *flags: str, data: Path | None = None) -> list[str]:
        """Of `mocokit`, for a run into `out`."""
        epochs = ("--epochs", str(self.steps // STEPS_PER_EPOCH))
        return ["pretrain", "moco-v2-small", "--data", str(data or self.photos), "--out", str(out), *FLAGS, *epochs,
                *(flags or ("--precision", "fp32"))]  # fmt: skip

    def begin(
        self,
        name: str,
        *flags: str,
        ranks: int = 0,
        data: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> tuple[subprocess.Popen[str], Path]:
        """Start the run `name`: its process (torchrun's with `ranks`) and its folder."""
        out = self.work / name
        return start(self.arguments(out, *flags, data=data), ranks=ranks, **(environment or {})), out

    def undisturbed(self, *flags: str, ranks: int = 0) -> Path:
        """Folder of a run that nothing happens to; made once."""
        out = self.work / f"whole_{ranks}{''.join(flags).replace('-', '_')}"
        if not (out / "done").exists():
            code, output = finish(start(self.arguments(out, *flags), ranks=ranks))
            assert code == 0, output
            (out / "done").touch()
        return out

    def end(self, run: Path, *, ranks: int = 0) -> tuple[float, str]:
        """Resume `run` and let it end: seconds until it was past where it had been, and what it printed."""
        before, begun = logged_steps(run), time.monotonic()
        process = start(["resume", str(run)], ranks=ranks)
        wait_for_step(run, min(before + 1, self.steps))
        seconds = time.monotonic() - begun
        code, output = finish(process)
        assert code == 0, output
        return seconds, output

    def lost(self, run: Path, whole: Path) -> dict[str, int]:
        """Bits of the final state that differ from the undisturbed run's, and images counted twice or not at all."""
        state, reference = final_state(run), final_state(whole)
        parts = ("method", "optimizer", "step")
        keys = state["method"]["queue._extra_state"]["num_enqueued"]
        steps = [line for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines() if '"loss"' in line]
        return {
            "bits_differing": sum(differing_bits(state[part], reference[part]) for part in parts),
            "images_miscounted": abs(keys - self.steps * BATCH) + BATCH * abs(len(steps) - self.steps),
        }


def make_photos(folder: Path) -> Path:
    """80 photograph tiles of the embedded sample, as JPEG files."""
    if not folder.exists():
        with zipfile.ZipFile(sample_path("val")) as archive:
            for name in ("brick", "cat", "coffee", "grass", "rocket"):
                for member in [member for member in archive.namelist() if member.startswith(name)][:16]:
                    archive.extract(member, folder)
    return folder


def logged_steps(run: Path) -> int:
    """Steps that a run has logged so far."""
    log = run / "metrics.jsonl"
    return log.read_text(encoding="utf-8").count('"loss"') if log.exists() else 0


def wait_for_checkpoint(run: Path, *, ending: str = ".pt") -> Path:
    """The newest file of the run's checkpoints with that ending, once there is one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := sorted((run / "checkpoints").glob("step_*" + ending)):
            return found[-1]
        time.sleep(0.005)
    raise TimeoutError(f"{run}: no checkpoint came")


def until_end(process: subprocess.Popen[str]) -> tuple[float, int, str]:
    """Seconds until a process has ended with all that it started; its exit code, and what it printed."""
    begun = time.monotonic()
    code, output = finish(process)
    return time.monotonic() - begun, code, output


def rank_pids(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """Process id of each rank that torchrun started."""
    return {int(environment["RANK"]): pid for pid, environment in children(launcher.pid) if "RANK" in environment}


def children(parent: int) -> Iterator[tuple[int, dict[str, str]]]:
    """(process id, environment) of each process that `parent` started and that lives."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "status").read_text(encoding="utf-8")
                pairs = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # ended meanwhile
                continue
            if f"\nPPid:\t{parent}\n" in status:
                yield int(folder.name), dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL one process that we started."""
    os.kill(process.pid, signal.SIGKILL)


def differing_bits(a: Any, b: Any) -> int:
    """Bits in which the tensors of two states differ; a different number or text counts as one."""
    if isinstance(a, torch.Tensor):
        own, other = (value.detach().reshape(-1).contiguous().view(torch.uint8).numpy() for value in (a, b))
        return int(np.unpackbits(own ^ other).sum())
    if isinstance(a, dict):
        return sum(differing_bits(a[key], b[key]) for key in a) + len(a.keys() ^ b.keys())
    if isinstance(a, list | tuple):
        return sum(differing_bits(x, y) for x, y in zip(a, b, strict=True))
    return int(bool(a != b))
