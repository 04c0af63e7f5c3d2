"""Ctrl-C, SIGTERM and SIGUSR1 ask for an orderly end; a second Ctrl-C insists."""

import signal
from types import FrameType
from typing import Any


class StopSignal:
    """While entered, remembers that SIGINT, SIGTERM or SIGUSR1 came instead of dying of it.

    Slurm sends SIGUSR1 before a job's time is up, if asked to (`--signal=USR1@120`).
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C: don't wait for the step and the save
        self.received = number
