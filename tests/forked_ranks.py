"""Real processes that start in 0.1 s: they are forked from a server process that has imported torch and mocokit."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.forked_modules"])


class RunningRanks:
    """One process, or the ranks of one process group, with the methods of subprocess.Popen that tests need.

    The ranks get torchrun's environment; the store that they meet at lives in this process, as it does in torchrun.

    Args:
        command: ("-m", module, argument, ...) or (path of a script, argument, ...).
        ranks: Number of processes; 0: one, without torchrun's environment.
        environment: Variables to set.

    """

    def __init__(self, command: Sequence[str], *, ranks: int, environment: Mapping[str, str]) -> None:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._store = _store(ranks) if ranks else None
        self._output = Path(tempfile.mkstemp(prefix="mocokit_test_output_")[1])
        self._processes = []
        for rank in range(max(1, ranks)):
            if self._store is not None:
                variables.update(_variables_of_torchrun(rank, ranks, self._store.port))
            process = SERVER.Process(target=_run, args=(list(command), variables, str(self._output), str(Path.cwd())))
            process.start()
            self._processes.append(process)

    @property
    def pid(self) -> int:
        """Process id of the first rank."""
        pid = self._processes[0].pid
        assert pid is not None
        return pid

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks."""
        return [process.pid or 0 for process in self._processes]

    @property
    def returncodes(self) -> list[int | None]:
        """Exit codes of the ranks, negative for a signal; None for one that still runs."""
        return [process.exitcode for process in self._processes]

    @property
    def returncode(self) -> int:
        """Exit code of the first rank that failed, negative for a signal; 0 if none did. All must have ended."""
        codes = [process.exitcode for process in self._processes]
        assert None not in codes, "still running"
        return next((code for code in codes if code), 0)

    def poll(self) -> int | None:
        """Return the exit code if all have ended, else None."""
        return self.returncode if all(process.exitcode is not None for process in self._processes) else None

    def send_signal(self, number: int) -> None:
        """Send a signal to all ranks that still run, as torchrun does with one that it gets."""
        for process in self._processes:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, *, timeout: float) -> tuple[str, str]:
        """Wait until all have ended, and return what they printed, stdout and stderr together, and nothing.

        Raises:
            subprocess.TimeoutExpired: Not all ended within `timeout` seconds; the rest is killed.

        """
        deadline = time.monotonic() + timeout
        for process in self._processes:
            process.join(max(0, deadline - time.monotonic()))
        text = self._output.read_text(encoding="utf-8", errors="replace")
        if self.poll() is None:
            self.kill()
            raise subprocess.TimeoutExpired("forked ranks", timeout, output=text)
        self._output.unlink(missing_ok=True)
        return text, ""


def _store(ranks: int) -> "dist.TCPStore":  # type: ignore[name-defined]
    return dist.TCPStore("127.0.0.1", 0, world_size=ranks, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]


def _variables_of_torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _run(command: list[str], environment: dict[str, str], output: str, folder: str) -> None:
    """Be `python COMMAND` in this process."""
    log = os.open(output, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    multiprocessing.set_start_method(None, force=True)  # that of a new Python, not forkserver as in this child
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # torch reads the variable only when it is imported
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
