"""Break real runs in every way that a machine knows, and measure what is lost: `make faults`.

Writes experiments/results/faults.json and the table in docs/reliability.md.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fault_runs
from fault_runs import Runs, kill, logged_steps, rank_pids, until_end, wait_for_checkpoint
from fault_table import write_document
from tests.run_process import finish, start, wait_for_step

from mocokit.engine.checkpoint import list_checkpoints
from mocokit.engine.machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
"""What a fault came to: times, detection_s, recovery_s, bits_differing, images_miscounted, said."""


class NotPossibleError(RuntimeError):
    """The machine does not allow the fault."""


def kill_process(runs: Runs, *, quick: bool) -> Row:
    """SIGKILL the process at random steps."""
    times, rng = 2 if quick else 20, random.Random(0)
    process, run = runs.begin("kill_process", "--precision", "fp32", "--workers", "1")
    found, back = [], []
    for step in sorted(rng.sample(range(3, runs.steps - 2), times)):
        wait_for_step(run, step)
        kill(process)
        found.append(until_end(process)[0])
        begun, before = time.monotonic(), logged_steps(run)
        process = start(["resume", str(run)])
        wait_for_step(run, before + 1)
        back.append(time.monotonic() - begun)
    code, output = finish(process)
    assert code == 0, output
    return {"times": times, "detection_s": max(found), "recovery_s": max(back), **runs.lost(run, runs.undisturbed()),
            "said": "the next `mocokit resume` goes on"}  # fmt: skip


def _ranks_hit(runs: Runs, name: str, hit: Callable[[subprocess.Popen[str]], None], said: str) -> Row:
    """A run of several ranks, hit at a third of its steps, then resumed on as many."""
    process, run = runs.begin(name, ranks=runs.ranks)
    wait_for_step(run, runs.steps // 3)
    hit(process)
    seconds, code, output = until_end(process)
    assert code != 0, "a run that was hit does not end as if nothing were"
    assert said in output, output
    recovery_s, _ = runs.end(run, ranks=runs.ranks)
    lost = runs.lost(run, runs.undisturbed(ranks=runs.ranks))
    line = next(line for line in output.splitlines() if said in line)
    return {"times": 1, "detection_s": seconds, "recovery_s": recovery_s, **lost, "said": line.strip()}


def kill_rank(runs: Runs, *, quick: bool) -> Row:
    """SIGKILL one rank of several."""
    return _ranks_hit(runs, "kill_rank", lambda process: os.kill(rank_pids(process)[1], signal.SIGKILL), "SIGKILL")


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
    flags, counts = ("--precision", "fp64"), (2, 0) if quick else (4, 2, 0)
    whole = runs.undisturbed(*flags)
    process, run = runs.begin("world_sizes", *flags, ranks=counts[0])
    for number, ranks in enumerate(counts[1:], 1):
        wait_for_step(run, number * runs.steps // len(counts))
        os.kill(rank_pids(process)[0], signal.SIGKILL)
        finish(process)
        process = start(["resume", str(run)], ranks=ranks)
    code, output = finish(process)
    assert code == 0, output
    largest = max(abs(a / b - 1) for a, b in zip(_losses(run), _losses(whole), strict=True))
    assert largest < 1e-9, largest
    miscounted = runs.lost(run, whole)["images_miscounted"]
    return {"times": len(counts) - 1, "images_miscounted": miscounted, "largest_relative_difference": largest,
            "said": f"losses within {largest:.0e} (relative) of an undisturbed run of one process"}  # fmt: skip


def _losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def different_rank(runs: Runs, *, quick: bool) -> Row:
    """One rank starts with another weight (one bit)."""
    patch = (
        "import os, torch, mocokit.pretraining as p; old = p.assemble\n"
        "def assemble(*a):\n"
        "    parts = old(*a)\n"
        "    if os.environ['RANK'] == '1':\n"
        "        next(parts.method.encoder_q.parameters()).data.view(-1)[0:1].view(torch.int32).bitwise_xor_(1)\n"
        "    return parts\n"
        "p.assemble = assemble\n"
    )
    out = runs.work / "different_rank"
    flags = ("--precision", "fp32", "--run.no-channels-last")
    process = _patched(runs, patch, runs.arguments(out, *flags), ranks=runs.ranks)
    seconds, code, output = until_end(process)
    said = "rank 1 differs from the others in encoder_q"
    assert code != 0 and said in output, output
    return {"times": 1, "detection_s": seconds, "said": said + "; start every rank with the same command, ..."}


def _patched(runs: Runs, patch: str, arguments: list[str], *, ranks: int = 0) -> subprocess.Popen[str]:
    """`mocokit` after `patch` was run in its process."""
    script = runs.work / "patched.py"
    script.write_text(patch + "\nimport sys\nfrom mocokit.cli import main\nsys.exit(main())\n", encoding="utf-8")
    return start(arguments, ranks=ranks, program=(str(script),))


def full_disk(runs: Runs, *, quick: bool) -> Row:
    """The disk (tmpfs) fills up during the run; then there is room again."""
    disk = runs.work / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise NotPossibleError("may not mount a tmpfs")
    try:
        process, run = runs.begin("disk/run")
        wait_for_checkpoint(run)
        begun = time.monotonic()
        with (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                try:
                    ballast.write(bytes(4096))
                except OSError:
                    break
        code, output = finish(process)
        seconds = time.monotonic() - begun
        assert code == 1 and "make room, then resume" in output, output
        assert list(run.rglob("*.partial")) == []
        (disk / "ballast").unlink()
        recovery_s, _ = runs.end(run)
        return {"times": 1, "detection_s": seconds, "recovery_s": recovery_s, **runs.lost(run, runs.undisturbed()),
                "said": output.strip().splitlines()[-1].replace(str(disk), "")}  # fmt: skip
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _damaged(runs: Runs, name: str, damage: Callable[[Path], None], said: str) -> Row:
    """A killed run whose newest checkpoint is damaged."""
    process, run = runs.begin(name)
    wait_for_step(run, runs.steps // 2)
    kill(process)
    finish(process)
    newest = list_checkpoints(run / "checkpoints")[-1]
    damage(newest)
    recovery_s, output = runs.end(run)
    assert said in output, output
    assert list(run.rglob("*.partial")) == []
    line = f"{newest.name}: {said} ...; using an older checkpoint" if said else "nothing; it is removed"
    return {"times": 1, "recovery_s": recovery_s, **runs.lost(run, runs.undisturbed()), "said": line}


def cut_checkpoint(runs: Runs, *, quick: bool) -> Row:
    """The newest checkpoint loses its second half."""
    return _damaged(runs, "cut", lambda path: os.truncate(path, path.stat().st_size // 2), "cut off or damaged")


def flipped_bit(runs: Runs, *, quick: bool) -> Row:
    """One bit of the newest checkpoint flips."""

    def flip(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 4
        path.write_bytes(raw)

    return _damaged(runs, "flipped", flip, "damaged: its SHA-256 is not the one it was written with")


def half_renamed(runs: Runs, *, quick: bool) -> Row:
    """The newest checkpoint still has its temporary name."""

    def rename_back(path: Path) -> None:
        path.replace(path.with_name(path.name + ".partial"))

    return _damaged(runs, "half_renamed", rename_back, "")


def images_vanish(runs: Runs, *, quick: bool) -> Row:
    """During the run one file is deleted, one cut, one overwritten by text."""
    data = Path(shutil.copytree(runs.photos, runs.work / "vanishing"))
    gone, cut, text = sorted(data.rglob("*.jpg"))[::30]
    flags = ("--precision", "fp32", "--data.max-bad-share", "0.05")
    process, run = runs.begin("images_vanish", *flags, data=data)
    wait_for_step(run, runs.steps // 3)
    gone.unlink()
    os.truncate(cut, 200)
    text.write_text("not an image", encoding="utf-8")
    code, output = finish(process)
    log = (run / "log.txt").read_text(encoding="utf-8")
    assert code == 0, output
    assert [log.count(f"bad image {path}") for path in (gone, cut, text)] == [1, 1, 1], log
    return {"times": 3, "images_miscounted": runs.lost(run, runs.undisturbed())["images_miscounted"],
            "said": "log.txt: bad image ... replaced by another, once for each"}  # fmt: skip


def blocked_mount(runs: Runs, *, quick: bool) -> Row:
    """An image whose read blocks (a FIFO that nobody fills)."""
    data, blocked_s = Path(shutil.copytree(runs.photos, runs.work / "blocking")), 3 if quick else 30
    path = sorted(data.rglob("*.jpg"))[7]
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)

    def serve() -> None:
        for number in range(runs.steps):  # read about once an epoch
            if number == 1:
                time.sleep(blocked_s)
            with path.open("wb") as pipe:  # waits for a reader
                pipe.write(content)
            time.sleep(0.05)  # let the reader see the end

    threading.Thread(target=serve, daemon=True).start()
    begun = time.monotonic()
    process, run = runs.begin("blocked", data=data)
    code, output = finish(process)
    assert code == 0, output
    assert "bad image" not in (run / "log.txt").read_text(encoding="utf-8")
    assert time.monotonic() - begun > blocked_s
    return {"times": 1, "recovery_s": float(blocked_s), **runs.lost(run, runs.undisturbed()),
            "said": f"nothing; the run waits {blocked_s} s and goes on"}  # fmt: skip


def bad_gradient(runs: Runs, *, quick: bool) -> Row:
    """NaN in one gradient of one parameter, in the last step of an epoch, which is saved at once."""
    patch = (
        "import mocokit.engine.train as t; old, calls = t.distributed.sum_gradients, []\n"
        "def sum_gradients(parameters):\n"
        "    parameters = list(parameters); old(parameters); calls.append(1)\n"
        f"    if len(calls) == {2 * fault_runs.STEPS_PER_EPOCH}: parameters[1].grad[0] = float('nan')\n"
        "t.distributed.sum_gradients = sum_gradients\n"
    )
    run = runs.work / "bad_gradient"
    process = _patched(runs, patch, runs.arguments(run, "--precision", "fp32"))
    code, output = finish(process)
    said = f"loss or gradient is not finite at step {2 * fault_runs.STEPS_PER_EPOCH - 1}"
    assert code == 1 and said in output, output
    recovery_s, _ = runs.end(run)
    return {"times": 1, "recovery_s": recovery_s, **runs.lost(run, runs.undisturbed()), "said": said}


def two_runs(runs: Runs, *, quick: bool) -> Row:
    """A second `pretrain`, and a `resume`, on the folder of a run that goes on."""
    process, run = runs.begin("two_runs")
    wait_for_step(run, 2)
    os.kill(process.pid, signal.SIGSTOP)  # so that it can't end before the second has started
    begun = time.monotonic()
    for second in (runs.arguments(run), ["resume", str(run)]):
        code, output = finish(start(second))
        assert code == 1 and f"in use by process {process.pid} on" in output, output
    seconds = (time.monotonic() - begun) / 2
    os.kill(process.pid, signal.SIGCONT)
    code, output = finish(process)
    assert code == 0, output
    return {"times": 2, "detection_s": seconds, **runs.lost(run, runs.undisturbed()),
            "said": "in use by process ... on ...; wait for it to end, or choose another folder"}  # fmt: skip


JUMPING_CLOCK = r"""
#define _GNU_SOURCE
#include <sys/time.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static long jump(void) { static long calls; return (calls++ / 50 % 2 ? 1 : -1) * 86400L; }
int clock_gettime(clockid_t id, struct timespec *t) {
  int failed = syscall(SYS_clock_gettime, id, t);
  if (id == CLOCK_REALTIME) t->tv_sec += jump();
  return failed;
}
int gettimeofday(struct timeval *t, void *zone) {
  struct timespec now; clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec; t->tv_usec = now.tv_nsec / 1000; return 0;
}
time_t time(time_t *out) {
  struct timespec now; clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
"""


def jumping_clock(runs: Runs, *, quick: bool) -> Row:
    """The wall clock jumps by two days, back and forth, all the time (LD_PRELOAD)."""
    source, library = runs.work / "clock.c", runs.work / "clock.so"
    source.write_text(JUMPING_CLOCK, encoding="utf-8")
    compiler = shutil.which("cc")
    if compiler is None:
        raise NotPossibleError("no C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    check = [sys.executable, "-c", "import time; print(len({int(time.time()) // 80000 for _ in range(200)}))"]
    seen = subprocess.run(
        check, env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True, check=True
    )
    assert int(seen.stdout) > 1, "the clock does jump"
    process, run = runs.begin("clock", environment={"LD_PRELOAD": str(library)})
    code, output = finish(process)
    assert code == 0, output
    return {
        "times": 1,
        **runs.lost(run, runs.undisturbed()),
        "said": "nothing; durations come from the monotonic clock",
    }


def term_while_saving(runs: Runs, *, quick: bool) -> Row:
    """SIGTERM, with 30 s to live, while a save is on its way to a slow disk (2 s a file)."""
    patch = (
        "import time, mocokit.engine.checkpoint as c; old = c._flush\n"
        "def slow(path):\n"
        f"    time.sleep({1 if quick else 2} if path.name.endswith('.partial') else 0); old(path)\n"
        "c._flush = slow\n"
    )
    run = runs.work / "term"
    process = _patched(runs, patch, runs.arguments(run, "--precision", "fp32"))
    wait_for_checkpoint(run, ending=".pt.partial")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    seconds = time.monotonic() - begun
    assert code == 128 + signal.SIGTERM and seconds < 30, (seconds, output)
    said = next(line for line in output.splitlines() if line.startswith("stopped at step"))
    saved = int(list_checkpoints(run / "checkpoints")[-1].stem.removeprefix("step_"))
    assert f"stopped at step {saved} of" in said, said
    recovery_s, _ = runs.end(run)
    return {"times": 1, "detection_s": seconds, "recovery_s": recovery_s, **runs.lost(run, runs.undisturbed()),
            "said": said}  # fmt: skip


FAULTS: tuple[Callable[..., Row], ...] = (
    kill_process, cut_checkpoint, flipped_bit, half_renamed, full_disk, term_while_saving, bad_gradient, two_runs,
    images_vanish, blocked_mount, jumping_clock, kill_rank, kill_launcher, hung_rank, different_rank, world_sizes,
)  # fmt: skip


def inject(fault: Callable[..., Row], runs: Runs, *, quick: bool) -> Row:
    """One fault's row; without `times` when it was not run."""
    how = _how(fault)
    try:
        row = fault(runs, quick=quick)
        return {"how": how, "steps": runs.steps, **row, "said": row["said"].replace(str(runs.work), "RUNS")}
    except NotPossibleError as error:
        return {"how": how, "not_run": str(error)}


def write_results(rows: dict[str, Row], results: Path, document: Path) -> None:
    """Write JSON and the table; faults without a row are marked."""
    missing = {fault.__name__: {"how": _how(fault), "not_run": "not run yet"} for fault in FAULTS}
    result = {"machine": describe_machine(), "faults": missing | rows}
    results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_document(document, result)


def _how(fault: Callable[..., Row]) -> str:
    return (fault.__doc__ or "").rstrip(".")


def main() -> None:
    """Inject every fault, or some, and write what came of it."""
    names = [fault.__name__ for fault in FAULTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer kills, 2 ranks instead of 4, shorter waits")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--keep", action="store_true", help="use undisturbed runs that lie in --work")
    parser.add_argument("--work", type=Path, default=Path("runs/faults"))
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results" / "faults.json")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "reliability.md")
    args = parser.parse_args()
    if not args.keep:
        shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Row] = {}
    if args.results.exists():
        kept = json.loads(args.results.read_text(encoding="utf-8"))["faults"]
    for fault in FAULTS:
        if fault.__name__ in args.only:
            many = fault is kill_process and not args.quick
            runs = Runs(
                args.work / ("long" if many else "short"), steps=100 if many else 30, ranks=2 if args.quick else 4
            )
            kept[fault.__name__] = inject(fault, runs, quick=args.quick)
            print(json.dumps({fault.__name__: kept[fault.__name__]}), flush=True)
            write_results(kept, args.results, args.document)


if __name__ == "__main__":
    main()
