"""Orderly end of a run on Ctrl-C, SIGTERM, SIGUSR1 or the death of torchrun; a second Ctrl-C ends it at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from mocokit import distributed

STOPPING = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if name in signal.Signals.__members__]
"""Signals that end a run in order; Windows has no SIGUSR1."""

HANGUP = 1
"""Number of SIGHUP on POSIX systems; Windows lacks that name, and its ranks use the same number."""


class StopSignal:
    """Context manager that records SIGINT, SIGTERM or SIGUSR1 instead of letting them end the process.

    Slurm sends SIGUSR1 before a job's time is up, if asked to (`--signal=USR1@120`).

    A signal may reach one rank alone, but all ranks stop at the same step and end with the same exit code. The first
    rank to end makes torchrun send SIGTERM to the others, which may be about to say where they stopped. So after a
    signal, a rank of torchrun ignores SIGTERM until it has ended.

    Python lets only the main thread handle signals. In another thread, such as a notebook's or a server's, nothing is
    recorded, and signals do what the program that owns the main thread has chosen.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self.agreed: int | None = None
        """Number of the signal for which all ranks stop; None if the run should go on."""
        self._previous: dict[int, Any] = {}
        # If torchrun is killed, nobody ends its ranks: they would train on and keep their GPUs. So watch for it.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def received(self) -> int | None:
        """Number of this rank's first signal; SIGHUP if torchrun is gone; None if there was none."""
        if self._received is None and self._launcher is not None and os.getppid() != self._launcher:
            self._received = HANGUP
        return self._received

    def agree(self) -> bool:
        """Return True if any rank has received a signal; `agreed` is then the largest number. A collective."""
        self.agreed = distributed.max_over_ranks(self.received or 0) or None
        return self.agreed is not None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in STOPPING:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_exception: object) -> None:
        is_ending = self._launcher is not None and self.agreed is not None
        for number, handler in self._previous.items():
            # SIG_IGN, not a function: while Python ends it replaces functions by the default, which kills.
            signal.signal(number, signal.SIG_IGN if is_ending and number == signal.SIGTERM else handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # second Ctrl-C: wait neither for the step nor for the save
        self._received = number
