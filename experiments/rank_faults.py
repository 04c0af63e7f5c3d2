"""Faults of runs on several ranks: a rank that is killed, stopped or different, and a resume on fewer ranks."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from fault_runs import Row, Runs, kill, rank_pids


def _ranks_hit(runs: Runs, name: str, hit: Callable[[subprocess.Popen[str]], None], said: str) -> Row:
    """Run several ranks, call `hit` after a third of the steps, resume on as many ranks, and return the row."""
    process, run = runs.begin(name, ranks=runs.ranks)
    runs.wait_for_step(run, runs.steps // 3)
    hit(process)
    seconds, code, output = runs.until_end(process)
    assert code != 0, "the run must end with an error"
    assert said in output, output
    recovery_s, _ = runs.end(run, ranks=runs.ranks)
    lost = runs.lost(run, runs.undisturbed(ranks=runs.ranks))
    line = next(line for line in output.splitlines() if said in line)
    return {"times": 1, "detection_s": seconds, "recovery_s": recovery_s, **lost, "said": line.strip()}


def kill_rank(runs: Runs, *, quick: bool) -> Row:
    """SIGKILL one rank of several."""

    def hit(process: subprocess.Popen[str]) -> None:
        os.kill(rank_pids(process)[1], signal.SIGKILL)

    return _ranks_hit(runs, "kill_rank", hit, "another rank has ended")


def kill_launcher(runs: Runs, *, quick: bool) -> Row:
    """SIGKILL torchrun; its ranks notice, save and end."""
    return _ranks_hit(runs, "kill_launcher", kill, "continue with: mocokit resume")


def hung_rank(runs: Runs, *, quick: bool) -> Row:
    """SIGSTOP one rank (run.rank_timeout_s=10); torchrun then needs 30 s to give it up."""
    hit = [0]

    def stop(process: subprocess.Popen[str]) -> None:
        hit[0] = rank_pids(process)[1]
        os.kill(hit[0], signal.SIGSTOP)

    return _ranks_hit(runs, "hung_rank", stop, "rank 1 did not arrive: the process is stopped")


def world_sizes(runs: Runs, *, quick: bool) -> Row:
    """Resume on other numbers of ranks, down to one process (fp64, the same BatchNorm groups); SIGKILL in between."""
    flags = ("--precision", "fp64")
    counts = (2, 0) if quick else (4, 2, 0)
    whole = runs.undisturbed(*flags)
    process, run = runs.begin("world_sizes", *flags, ranks=counts[0])
    for number, ranks in enumerate(counts[1:], 1):
        runs.wait_for_step(run, number * runs.steps // len(counts))
        os.kill(rank_pids(process)[0], signal.SIGKILL)
        runs.finish(process)
        process = runs.start(["resume", str(run)], ranks=ranks)
    runs.finish(process, code=0)
    largest = max(abs(a / b - 1) for a, b in zip(_losses(run), _losses(whole), strict=True))
    assert largest < 1e-9, largest
    miscounted = runs.lost(run, whole)["images_miscounted"]
    return {
        "times": len(counts) - 1,
        "images_miscounted": miscounted,
        "largest_relative_difference": largest,
        "said": f"losses within {largest:.0e} (relative) of an undisturbed run of one process",
    }


def _losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def different_rank(runs: Runs, *, quick: bool) -> Row:
    """One rank starts with another weight (one bit)."""
    patch = (
        "import os, torch, mocokit.run.pretrain as p; old = p.build_run\n"
        "def build_run(*a):\n"
        "    parts = old(*a)\n"
        "    if os.environ['RANK'] == '1':\n"
        "        next(parts.method.encoder_q.parameters()).data.view(-1)[0:1].view(torch.int32).bitwise_xor_(1)\n"
        "    return parts\n"
        "p.build_run = build_run\n"
    )
    flags = ("--precision", "fp32", "--run.no-channels-last")
    process, _ = runs.begin_patched("different_rank", patch, *flags, ranks=runs.ranks)
    seconds, code, output = runs.until_end(process)
    said = "rank 1 differs from the others in encoder_q"
    assert code != 0 and said in output, output
    return {"times": 1, "detection_s": seconds, "said": said + "; start every rank with the same command, ..."}
