"""Faults of one process: SIGKILL, SIGTERM, NaN gradients, a second run in its folder, a jumping clock."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

from fault_runs import STEPS_PER_EPOCH, NotPossibleError, Row, Runs, children, kill, logged_steps

from mocokit.engine.checkpoint import list_checkpoints


def kill_process(runs: Runs, *, quick: bool) -> Row:
    """SIGKILL the process at random steps."""
    times = 2 if quick else 20
    rng = random.Random(0)
    process, run = runs.begin("kill_process", "--precision", "fp32", "--workers", "1")
    found = []
    back = []
    for step in sorted(rng.sample(range(3, runs.steps - 2), times)):
        runs.wait_for_step(run, step)
        kill(process)
        found.append(runs.until_end(process)[0])
        begun = time.monotonic()
        before = logged_steps(run)
        process = runs.start(["resume", str(run)])
        runs.wait_for_step(run, before + 1)
        back.append(time.monotonic() - begun)
    runs.finish(process, code=0)
    return {
        "times": times,
        "detection_s": max(found),
        "recovery_s": max(back),
        **runs.lost(run, runs.undisturbed()),
        "said": "the next `mocokit resume` goes on",
    }


def kill_worker(runs: Runs, *, quick: bool) -> Row:
    """SIGKILL one of two loader workers; the run goes on by itself (recovery: from the kill until the next step)."""
    steps = (4, 18) if quick else (4, 11, 18)
    process, run = runs.begin("kill_worker", "--precision", "fp32", "--workers", "2")
    found = []
    back = []
    for number, step in enumerate(steps, start=1):
        runs.wait_for_step(run, step)
        begun = time.monotonic()
        os.kill(next(pid for pid, _ in children(process.pid)), signal.SIGKILL)
        runs.wait_for_line(run / "log.txt", "was killed", times=number)
        found.append(time.monotonic() - begun)
        runs.wait_for_step(run, logged_steps(run) + 1)
        back.append(time.monotonic() - begun)
    _, output = runs.finish(process, code=0)
    said = next(line for line in output.splitlines() if "was killed" in line)
    return {
        "times": len(steps),
        "detection_s": max(found),
        "recovery_s": max(back),
        **runs.lost(run, runs.undisturbed()),
        "said": re.sub(r"process \d+", "process ...", said),
    }


def term_while_saving(runs: Runs, *, quick: bool) -> Row:
    """SIGTERM, with 30 s to live, while a save is on its way to a slow disk (2 s a file)."""
    patch = (
        "import os, time; old = os.fsync\n"
        "def slow(descriptor):\n"
        "    path = os.readlink(f'/proc/self/fd/{descriptor}')\n"
        f"    time.sleep({1 if quick else 2} if path.endswith('.partial') else 0); old(descriptor)\n"
        "os.fsync = slow\n"
    )
    process, run = runs.begin_patched("term_while_saving", patch)
    runs.wait_for_checkpoint(run, ending=".pt.partial")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, output = runs.finish(process)
    seconds = time.monotonic() - begun
    assert code == 128 + signal.SIGTERM and seconds < 30, (seconds, output)
    said = next(line for line in output.splitlines() if line.startswith("stopped at step"))
    saved = int(list_checkpoints(run / "checkpoints")[-1].stem.removeprefix("step_"))
    assert f"stopped at step {saved} of" in said, said
    recovery_s, _ = runs.end(run)
    return {
        "times": 1,
        "detection_s": seconds,
        "recovery_s": recovery_s,
        **runs.lost(run, runs.undisturbed()),
        "said": said,
    }


def bad_gradient(runs: Runs, *, quick: bool) -> Row:
    """NaN in one gradient of one parameter, in the last step of an epoch, which is saved at once."""
    patch = (
        "import mocokit.engine.train as t; old, calls = t.step_if_finite, []\n"
        "def step_if_finite(optimizer, *given, **settings):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == {2 * STEPS_PER_EPOCH}: optimizer.param_groups[0]['params'][1].grad[0] = float('nan')\n"
        "    return old(optimizer, *given, **settings)\n"
        "t.step_if_finite = step_if_finite\n"
    )
    process, run = runs.begin_patched("bad_gradient", patch)
    code, output = runs.finish(process)
    said = f"loss or gradient is not finite at step {2 * STEPS_PER_EPOCH - 1}"
    assert code == 1 and said in output, output
    recovery_s, _ = runs.end(run)
    return {"times": 1, "recovery_s": recovery_s, **runs.lost(run, runs.undisturbed()), "said": said}


def two_runs(runs: Runs, *, quick: bool) -> Row:
    """A second `pretrain`, and a `resume`, on the folder of a run that goes on."""
    process, run = runs.begin("two_runs")
    runs.wait_for_step(run, 2)
    os.kill(process.pid, signal.SIGSTOP)  # so that it cannot end before the second has started
    begun = time.monotonic()
    for second in (runs.arguments(run), ["resume", str(run)]):
        code, output = runs.finish(runs.start(second))
        assert code == 1 and f"in use by process {process.pid} on" in output, output
    seconds = (time.monotonic() - begun) / 2
    os.kill(process.pid, signal.SIGCONT)
    runs.finish(process, code=0)
    return {
        "times": 2,
        "detection_s": seconds,
        **runs.lost(run, runs.undisturbed()),
        "said": "in use by process ... on ...; wait for it to end, or choose another folder",
    }


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
    source = runs.work / "clock.c"
    library = runs.work / "clock.so"
    source.write_text(JUMPING_CLOCK, encoding="utf-8")
    compiler = shutil.which("cc")
    if compiler is None:
        raise NotPossibleError("no C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    check = [sys.executable, "-c", "import time; print(len({int(time.time()) // 80000 for _ in range(200)}))"]
    seen = subprocess.run(
        check, env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True, check=True
    )
    assert int(seen.stdout) > 1, "the clock must jump"
    process, run = runs.begin("clock", environment={"LD_PRELOAD": str(library)})
    runs.finish(process, code=0)
    return {
        "times": 1,
        **runs.lost(run, runs.undisturbed()),
        "said": "nothing; durations come from the monotonic clock",
    }
