"""Orderly end of a run on Ctrl-C, SIGTERM, SIGUSR1 or the death of torchrun; a second Ctrl-C ends it at once."""

import os
import signal
from types import FrameType
from typing import Any

STOPPING = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if name in signal.Signals.__members__]
"""Signals that end a run in order; Windows has no SIGUSR1."""


class StopSignal:
    """Context manager that records SIGINT, SIGTERM or SIGUSR1 instead of letting them end the process.

    Slurm sends SIGUSR1 before a job's time is up, if asked to (`--signal=USR1@120`).
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        # If torchrun is killed, nobody ends its ranks: they would train on and keep their GPUs. So watch for it.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def received(self) -> int | None:
        """Number of the first signal; SIGHUP if torchrun is gone; None if the run should go on."""
        if self._received is None and self._launcher is not None and os.getppid() != self._launcher:
            self._received = signal.SIGHUP
        return self._received

    def __enter__(self) -> "StopSignal":
        for number in STOPPING:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # second Ctrl-C: wait neither for the step nor for the save
        self._received = number
