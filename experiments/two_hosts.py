"""Faults between two hosts, which are network namespaces of this machine joined by a virtual cable.

Needs root and `ip`. One torchrun spans both hosts. A host whose torchrun ended with an error is started again, as a
batch system would do.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from fault_runs import NotPossibleError, Row, Runs, logged_steps, rank_pids

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29400
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "eth0",
    # Without it, a restarted torchrun never learns the address of rank 0, and the other host's store keeps the entries
    # of the former ranks: github.com/pytorch/pytorch/issues/135712
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
MAX_STARTS = 6
"""Limit of starts of one host's torchrun in one run; more would be a loop."""


class TwoHosts:
    """Context manager for two network namespaces with a cable between them; both are removed at the end.

    Args:
        run: Folder of the run that both hosts train together, on a disk that both see.
        command: Arguments of `mocokit` that start the run; once it has begun, hosts resume it.
        patience_s: Seconds to wait for any event before giving up.

    """

    def __init__(self, run: Path, command: list[str], *, patience_s: float) -> None:
        self.run = run
        self.patience_s = patience_s
        self.starts = 0
        self._names = [f"mocokit-{os.getpid()}-{number}" for number in (0, 1)]
        self._torchruns: list[subprocess.Popen[str]] = []
        self._script = run.with_suffix(".sh")
        self.log = run.with_suffix(".out")
        program = f"{shlex.quote(sys.executable)} -m mocokit"
        self._script.write_text(
            f"if [ -e {shlex.quote(str(run / 'config.toml'))} ]; then exec {program} resume {shlex.quote(str(run))}\n"
            f"else exec {program} {shlex.join(command)}; fi\n",
            encoding="utf-8",
        )

    def __enter__(self) -> "TwoHosts":
        shutil.rmtree(self.run, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        try:
            self._lay_cable()
            self._torchruns = [self._start(number) for number in (0, 1)]
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__(None, None, None)
            raise NotPossibleError("may not make network namespaces (root and `ip` are needed)") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, name in enumerate(self._names):
            self.kill(number)
            delete = ["ip", "netns", "delete", name]  # deletes its end of the cable too
            subprocess.run(delete, capture_output=True, check=False)
        for process in self._torchruns:
            process.wait()

    def _lay_cable(self) -> None:
        ends = [f"mk{os.getpid()}{end}" for end in "ab"]
        for name in self._names:
            _ip("netns", "add", name)
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(self._names, ends, ADDRESSES, strict=True):
            _ip("link", "set", end, "netns", name, "name", "eth0")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "eth0", "up")

    def _start(self, number: int) -> subprocess.Popen[str]:
        """Start torchrun on one host, with one rank; the first host serves the rendezvous."""
        self.starts += 1
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes=2",
            "--nproc-per-node=1",
            "--max-restarts=10",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}",
            f"--rdzv-id={self.run.name}",
            f"--rdzv-conf=is_host={not number},read_timeout=10",
            f"--local-addr={ADDRESSES[number]}",
            "--no-python",
            "bash",
            str(self._script),
        ]
        with self.log.open("a", encoding="utf-8") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self._names[number], *torchrun],
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, **ENVIRONMENT},
            )

    def cut(self) -> None:
        """Unplug the cable at the second host."""
        _ip("-n", self._names[1], "link", "set", "eth0", "down")

    def heal(self) -> None:
        """Plug the cable in again."""
        _ip("-n", self._names[1], "link", "set", "eth0", "up")

    def kill(self, number: int) -> None:
        """Send SIGKILL to every process of one host."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self._names[number]], capture_output=True, text=True, check=False
        )
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ranks(self) -> set[int]:
        """Return the process ids of all living ranks."""
        return {pid for torchrun in self._torchruns for pid in rank_pids(torchrun).values()}

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Return once `condition` holds; meanwhile restart each torchrun that ended with an error."""
        deadline = time.monotonic() + self.patience_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {self.patience_s:g} s")
            for number, process in enumerate(self._torchruns):
                if process.poll():
                    assert self.starts < 2 * MAX_STARTS, f"torchrun ends again and again: {self.printed()}"
                    self._torchruns[number] = self._start(number)
            time.sleep(0.02)

    def finish(self) -> None:
        """Wait until torchrun has ended without error on both hosts."""
        self.wait_until(lambda: all(process.poll() == 0 for process in self._torchruns), "the end of the run")

    def printed(self) -> str:
        """Return the output of both hosts."""
        return self.log.read_text(encoding="utf-8")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, check=True)


def _hit(
    runs: Runs, name: str, hit: Callable[[TwoHosts], float | None], mend: Callable[[TwoHosts], None], said: str
) -> Row:
    """Run two hosts, call `hit` after a third of the steps, then `mend`, and return the row.

    `hit` returns the seconds until the hosts noticed the fault, or None if they need not notice.
    """
    run = runs.work / name
    with TwoHosts(run, runs.arguments(run), patience_s=runs.patience_s) as hosts:
        hosts.wait_until(lambda: logged_steps(run) >= runs.steps // 3, "a third of the run")
        detection_s = hit(hosts)
        before = logged_steps(run)
        begun = time.monotonic()
        mend(hosts)
        hosts.wait_until(lambda: logged_steps(run) > before, "the next step")
        recovery_s = time.monotonic() - begun
        hosts.finish()
        lines = [line for line in hosts.printed().splitlines() if said and said in line]
        assert lines or not said, hosts.printed()
    noticed = {} if detection_s is None else {"detection_s": detection_s}
    told = lines[0].strip() if lines else "nothing; the run waits and goes on"
    lost = runs.lost(run, runs.undisturbed(ranks=2))
    return {"times": 1, **noticed, "recovery_s": recovery_s, **lost, "said": told}


def short_cut(runs: Runs, *, quick: bool) -> Row:
    """Two hosts: the cable between them is cut for 5 s, half of run.rank_timeout_s."""

    def cut(hosts: TwoHosts) -> None:
        hosts.cut()
        before = logged_steps(hosts.run)
        time.sleep(5)
        assert logged_steps(hosts.run) <= before + 1, "no step may end without the other host"

    return _hit(runs, "short_cut", cut, TwoHosts.heal, "")


def long_cut(runs: Runs, *, quick: bool) -> Row:
    """Two hosts: the cable is cut until both have given up, then healed."""

    def cut(hosts: TwoHosts) -> float:
        ranks = hosts.ranks()
        begun = time.monotonic()
        hosts.cut()
        hosts.wait_until(lambda: not ranks & hosts.ranks(), "the end of both ranks")
        return time.monotonic() - begun

    return _hit(runs, "long_cut", cut, TwoHosts.heal, "did not arrive")


def lost_host(runs: Runs, *, quick: bool) -> Row:
    """Two hosts: SIGKILL every process of the second, which is started again."""

    def kill(hosts: TwoHosts) -> float:
        ranks = hosts.ranks()
        begun = time.monotonic()
        hosts.kill(1)
        hosts.wait_until(lambda: not ranks & hosts.ranks(), "the end of the other rank")
        return time.monotonic() - begun

    return _hit(runs, "lost_host", kill, lambda hosts: None, "another rank has ended")
