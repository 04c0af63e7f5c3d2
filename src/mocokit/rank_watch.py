"""Finds the rank that others wait for in vain, and ends the run instead of letting all hang.

Each rank has a thread that beats in the launcher's store, and counts the collectives that its rank has entered. Who
waits too long looks up who entered fewer: that is the one that did not come. A process that is stopped does not beat.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

LOGGER = logging.getLogger("mocokit")

BEAT_S = 2.0
"""Between beats, at most; one small message each."""

SILENT_BEATS = 4
"""Beats that may be missed before a process counts as stopped."""


class Store(Protocol):
    """What a watch needs of torch's TCPStore; RuntimeError when it does not answer."""

    def set(self, key: str, value: str, /) -> None:
        """Write `value`."""
        ...

    def get(self, key: str, /) -> bytes:
        """Read a value."""
        ...


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself."""

    number: int
    entered: int
    """Collectives that it has entered so far."""
    excused: bool
    """It said that it works alone and that the others should wait."""


class RankWatch:
    """Beats for this rank and watches the others while it waits for them.

    Args:
        store: Shared by all ranks.
        rank: This rank.
        world_size: Number of ranks.
        timeout_s: Time that a collective may take.
        end: Called with a message that names the rank; ends the process.

    """

    def __init__(
        self, store: Store, *, rank: int, world_size: int, timeout_s: float, end: Callable[[str], None] | None = None
    ) -> None:
        self._store, self._rank, self._world_size, self._timeout_s = store, rank, world_size, timeout_s
        self._end = end or end_process
        self._interval_s = min(BEAT_S, timeout_s / 4)
        self._number, self._entered, self._excused, self._since = 0, 0, False, float("inf")
        self._closed = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._watch, name="rank watch", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def arrive(self) -> Iterator[None]:
        """Around each collective."""
        self._entered += 1
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = float("inf")

    @contextlib.contextmanager
    def excuse(self) -> Iterator[None]:
        """Around long work of this rank alone: the others wait for as long as its process lives."""
        self._excused = True
        try:
            yield
        finally:
            self._excused = False

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self._interval_s):
            missing = None
            try:
                self._beat()
                if self._waits_too_long():
                    missing = self._find_missing()
            except RuntimeError as error:  # the launcher's end is noticed elsewhere; a hang is not
                if self._waits_too_long():
                    missing = f"the launcher's store does not answer ({str(error).splitlines()[0]})"
            if missing is not None and self._waits_too_long():
                self._end(f"{missing}; waited {self._timeout_s:g} s (run.rank_timeout_s); the last checkpoint is good")
                return

    def _beat(self) -> None:
        self._number += 1
        self._store.set(_key(self._rank), f"{self._number} {self._entered} {int(self._excused)}")

    def _waits_too_long(self) -> bool:
        return time.monotonic() - self._since > self._timeout_s

    def _find_missing(self) -> str | None:
        """Who keeps this rank waiting; None: someone who asked for patience, or who came meanwhile."""
        entered, before = self._entered, self._read_beats()
        for _ in range(SILENT_BEATS):
            self._closed.wait(self._interval_s)
            self._beat()
        after = self._read_beats()
        if self._entered != entered or not self._waits_too_long():
            return None
        stopped = [rank for rank, beat in after.items() if beat.number == before[rank].number]
        late = [rank for rank, beat in after.items() if beat.entered < entered and rank not in stopped]
        if stopped:
            return f"{_ranks(stopped)} did not arrive: the process is stopped, or its machine is gone"
        if any(after[rank].excused for rank in late):
            return None
        if late:
            return f"{_ranks(late)} did not arrive: the process lives, but is blocked elsewhere (data? disk?)"
        return "all ranks arrived, but nothing comes through the network"

    def _read_beats(self) -> dict[int, Beat]:
        """Of all other ranks."""
        beats = {}
        for rank in range(self._world_size):
            if rank != self._rank:
                number, entered, excused = map(int, self._store.get(_key(rank)).split())
                beats[rank] = Beat(number, entered, bool(excused))
        return beats


def _key(rank: int) -> str:
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlives a restart of the ranks
    return f"mocokit/beat/{restart}/{rank}"


def _ranks(numbers: list[int]) -> str:
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {numbers}"


def end_process(message: str) -> None:
    """Say `message` and end this process with EX_TEMPFAIL (75: try again), whatever its other threads wait for."""
    LOGGER.error(message)
    sys.stderr.write(f"mocokit: {message}; continue with `mocokit resume`\n")
    sys.stderr.flush()
    time.sleep(2 * BEAT_S)  # the others find out by themselves, before the broken connection tells them less
    os._exit(os.EX_TEMPFAIL)
