"""Ctrl-C, SIGTERM, SIGUSR1 and the death of torchrun ask for an orderly end; a second Ctrl-C insists."""

import os
import signal
from types import FrameType
from typing import Any


class StopSignal:
    """While entered, remembers that SIGINT, SIGTERM or SIGUSR1 came instead of dying of it.

    Slurm sends SIGUSR1 before a job's time is up, if asked to (`--signal=USR1@120`).
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        # A rank whose launcher was killed would train on, with nobody to end it, and keep its GPU.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def received(self) -> int | None:
        """Number of the first signal; SIGHUP when the launcher is gone; None: go on."""
        if self._received is None and self._launcher is not None and os.getppid() != self._launcher:
            self._received = signal.SIGHUP
        return self._received

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C: don't wait for the step and the save
        self._received = number
