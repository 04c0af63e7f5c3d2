"""Start real runs for faults.py, watch the files that they write, and compare their final states bit by bit."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # for tests.run_process, which starts a run as the tests do

from tests.run_process import final_state, finish, start_process, wait_for_step

from mocokit.run.demo import sample_path

BATCH = 16
STEPS_PER_EPOCH = 5
FLAGS = [
    *("--global-batch-size", str(BATCH), "--bn-groups", "4", "--arch", "resnet10_w32", "--model.stem", "imagenet"),
    *("--image-size", "32", "--model.dim", "16", "--method.queue-size", "40", "--lr", "0.05", "--device", "cpu"),
    *("--run.log-every", "1", "--run.knn-every", "0", "--workers", "0", "--run.rank-timeout-s", "10"),
    *("--run.save-minutes", "0.002"),  # about every third step
]


Row = dict[str, Any]
"""Result of a fault: times, detection_s, recovery_s, bits_differing, images_miscounted, said."""


class NotPossibleError(RuntimeError):
    """Error for a fault that cannot be injected on this machine."""


class Runs:
    """Runs with the same 80 images and settings, each in a folder below `work`.

    Args:
        work: Parent of the run folders.
        steps: Steps of each run.
        ranks: Processes of a run on several ranks.
        patience_s: Seconds to wait for a run or a step before giving up.

    """

    def __init__(self, work: Path, *, steps: int, ranks: int, patience_s: float) -> None:
        self.work = work
        self.steps = steps
        self.ranks = ranks
        self.patience_s = patience_s
        self.photos = make_photos(work / "photos")
        self._started: list[subprocess.Popen[str]] = []

    def arguments(self, out: Path, *flags: str, data: Path | None = None) -> list[str]:
        """Return the arguments of `mocokit` for a run into `out`."""
        epochs = ("--epochs", str(self.steps // STEPS_PER_EPOCH))
        return [
            "pretrain",
            "moco-v2-small",
            "--data",
            str(data or self.photos),
            "--out",
            str(out),
            *FLAGS,
            *epochs,
            *(flags or ("--precision", "fp32")),
        ]

    def start(
        self,
        arguments: list[str],
        *,
        ranks: int = 0,
        environment: dict[str, str] | None = None,
        program: Sequence[str] = ("-m", "mocokit"),
    ) -> subprocess.Popen[str]:
        """Start `mocokit`, with `ranks` under torchrun, and return the process. `end_all` ends it."""
        process = start_process(arguments, ranks=ranks, program=program, **(environment or {}))
        self._started.append(process)
        return process

    def begin(
        self,
        name: str,
        *flags: str,
        ranks: int = 0,
        data: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> tuple[subprocess.Popen[str], Path]:
        """Empty the folder of run `name`, start the run, and return its process and its folder."""
        out = self.work / name
        shutil.rmtree(out, ignore_errors=True)
        return self.start(self.arguments(out, *flags, data=data), ranks=ranks, environment=environment), out

    def begin_patched(self, name: str, patch: str, *flags: str, ranks: int = 0) -> tuple[subprocess.Popen[str], Path]:
        """Do the same, but run the Python code `patch` first in each process."""
        script = self.work / f"{name}.py"
        out = self.work / name
        script.write_text(patch + "\nimport sys\nfrom mocokit.cli import main\nsys.exit(main())\n", encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        return self.start(self.arguments(out, *flags), ranks=ranks, program=(str(script),)), out

    def copy_photos(self, name: str) -> Path:
        """Return a copy of the image folder that a fault may damage."""
        shutil.rmtree(self.work / name, ignore_errors=True)
        return Path(shutil.copytree(self.photos, self.work / name))

    def undisturbed(self, *flags: str, ranks: int = 0) -> Path:
        """Return the folder of an undisturbed run with these flags; it is trained once."""
        name = f"whole_{ranks}{''.join(flags).replace('-', '_')}"
        if not (self.work / name / "done").exists():
            process, out = self.begin(name, *flags, ranks=ranks)
            self.finish(process, code=0)
            (out / "done").touch()
        return self.work / name

    def finish(self, process: subprocess.Popen[str], *, code: int | None = None) -> tuple[int, str]:
        """Wait for a process, assert that its exit code is `code` if given, and return the exit code and the output."""
        found, output = finish(process, within_s=self.patience_s)
        assert code in (None, found), f"exit code {found}: {output}"
        return found, output

    def until_end(self, process: subprocess.Popen[str]) -> tuple[float, int, str]:
        """Wait for a process and its children to end; return the seconds waited, the exit code and the output."""
        begun = time.monotonic()
        code, output = self.finish(process)
        return time.monotonic() - begun, code, output

    def wait_for_step(self, run: Path, step: int) -> None:
        """Return as soon as the run has logged `step` steps."""
        wait_for_step(run, step, within_s=self.patience_s)

    def wait_for_line(self, log: Path, text: str, *, times: int) -> None:
        """Return as soon as `text` occurs `times` times in a log."""
        deadline = time.monotonic() + self.patience_s
        while log.read_text(encoding="utf-8").count(text) < times:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{log}: no line says {text!r} for the {times}. time")
            time.sleep(0.05)

    def wait_for_checkpoint(self, run: Path, *, ending: str = ".pt") -> Path:
        """Wait until the run has a checkpoint file with this ending, and return the newest."""
        deadline = time.monotonic() + self.patience_s
        while time.monotonic() < deadline:
            if found := sorted((run / "checkpoints").glob("step_*" + ending)):
                return found[-1]
            time.sleep(0.005)
        raise TimeoutError(f"{run}: no checkpoint came")

    def end(self, run: Path, *, ranks: int = 0) -> tuple[float, str]:
        """Resume `run` to its end; return the seconds until its first new step, and the output."""
        before = logged_steps(run)
        begun = time.monotonic()
        process = self.start(["resume", str(run)], ranks=ranks)
        self.wait_for_step(run, min(before + 1, self.steps))
        seconds = time.monotonic() - begun
        _, output = self.finish(process, code=0)
        return seconds, output

    def end_all(self) -> None:
        """Send SIGKILL to all processes that a failed fault has left running."""
        for process in self._started:
            for pid, _ in [*children(process.pid)] if process.poll() is None else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
            process.communicate()
        self._started.clear()

    def lost(self, run: Path, whole: Path) -> dict[str, int]:
        """Return the bits of the final state that differ from run `whole`, and the images counted twice or never."""
        state = final_state(run)
        reference = final_state(whole)
        parts = ("method", "optimizer", "step")
        keys = state["method"]["queue._extra_state"]["num_enqueued"]
        return {
            "bits_differing": sum(differing_bits(state[part], reference[part]) for part in parts),
            "images_miscounted": abs(keys - self.steps * BATCH) + BATCH * abs(logged_steps(run) - self.steps),
        }


def make_photos(folder: Path) -> Path:
    """Write 80 tiles of the embedded sample as JPEG files and return the folder."""
    if not folder.exists():
        with zipfile.ZipFile(sample_path("val")) as archive:
            for name in ("brick", "cat", "coffee", "grass", "rocket"):
                for member in [member for member in archive.namelist() if member.startswith(name)][:16]:
                    archive.extract(member, folder)
    return folder


def logged_lines(run: Path) -> list[str]:
    """Return the logged line of each step of a run so far."""
    log = run / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [line for line in lines if '"loss"' in line]


def logged_steps(run: Path) -> int:
    """Return the number of steps that a run has logged so far."""
    return len(logged_lines(run))


def rank_pids(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """Return {rank: process id} of the ranks that torchrun started."""
    return {int(environment["RANK"]): pid for pid, environment in children(launcher.pid) if "RANK" in environment}


def children(parent: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (process id, environment) of each living child of `parent`."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "status").read_text(encoding="utf-8")
                pairs = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # the process has ended meanwhile
                continue
            if f"\nPPid:\t{parent}\n" in status:
                yield int(folder.name), dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def kill(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to one process that we started."""
    os.kill(process.pid, signal.SIGKILL)


def differing_bits(a: Any, b: Any) -> int:
    """Return the number of bits in which the tensors of two states differ; any other difference counts as one."""
    if isinstance(a, torch.Tensor):
        own, other = (value.detach().reshape(-1).contiguous().view(torch.uint8).numpy() for value in (a, b))
        return int(np.unpackbits(own ^ other).sum())
    if isinstance(a, dict):
        return sum(differing_bits(a[key], b[key]) for key in a) + len(a.keys() ^ b.keys())
    if isinstance(a, list | tuple):
        return sum(differing_bits(x, y) for x, y in zip(a, b, strict=True))
    return int(bool(a != b))
