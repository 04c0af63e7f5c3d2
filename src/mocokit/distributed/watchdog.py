"""Watchdog: finds the rank that the others wait for in vain, and ends the run instead of letting all ranks hang.

Each rank has two threads. The first writes a heartbeat to the launcher's store: a running number, and how many
collectives the rank has entered. If its own rank waits in a collective for longer than the timeout, it reads the
heartbeats of all ranks twice, several beats apart:

* a rank whose number did not change is stopped (SIGSTOP), dead, or its machine is gone;
* a rank that has entered fewer collectives is alive but blocked elsewhere, or works alone and has said so.

The second thread ends the process if the first is itself stuck, waiting for a store that does not answer.
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
"""Time between two heartbeats, one small message each; a quarter of the timeout if that is less."""

RESUME = "the last checkpoint is good: continue with `mocokit resume`"
"""Advice at the end of a message about another rank: that of a training."""

EX_TEMPFAIL = 75
"""Exit code that asks to try again (sysexits.h); os.EX_TEMPFAIL is missing on Windows."""

SILENT_BEATS = 4
"""Least number of beats without a change before a rank counts as stopped."""

SILENT_SHARE = 0.1
"""The least time for that, as a share of the timeout: 60 s of 600 s, for which a busy machine may starve a process."""

STORE_SILENT_S = 20.0
"""Time without an answer of the store after which the network counts as gone; one request is limited to 10 s."""


class Store(Protocol):
    """The part of torch's TCPStore that a watchdog uses; raises RuntimeError if it does not answer."""

    def set(self, key: str, value: str, /) -> None:
        """Write `value`."""
        ...

    def get(self, key: str, /) -> bytes:
        """Read a value."""
        ...


@dataclass(frozen=True)
class Beat:
    """Heartbeat of a rank."""

    number: int
    """Running number; it stays the same if the process is stopped."""
    entered: int
    """Collectives that the rank has entered so far."""
    alone_s: float
    """Time that the rank has spent in its current `working_alone` block; 0 outside of one."""


class RankWatch:
    """Watchdog of one rank.

    Args:
        store: Key-value store that all ranks share.
        generation: Name of this start, the same on all ranks. The store may still hold the heartbeats of one before.
        rank: This rank.
        world_size: Number of ranks.
        timeout_s: Time that a collective may take.
        alone_timeout_s: Time that a rank may work alone.
        advice: What the user can do, which ends the message.
        end: Function that ends the process, called with a message that names the rank; None: `end_process`.

    """

    def __init__(
        self,
        store: Store,
        *,
        generation: str,
        rank: int,
        world_size: int,
        timeout_s: float,
        alone_timeout_s: float,
        advice: str = RESUME,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self.advice = advice
        self._store = store
        self._generation = generation
        self._rank = rank
        self._world_size = world_size
        self._timeout_s = timeout_s
        self._alone_timeout_s = alone_timeout_s
        self._end = end or end_process
        self._interval_s = min(BEAT_S, timeout_s / 4)
        self._silent_s = min(STORE_SILENT_S, timeout_s)
        self._number = 0
        self._entered = 0
        self._waiting_since = float("inf")  # inf: not in a collective
        self._alone_since = float("inf")  # inf: not working alone
        self._closed = threading.Event()
        self._ending = threading.Lock()
        self._beat()
        self._threads = [
            threading.Thread(target=work, name=f"rank watch {work.__name__}", daemon=True)
            for work in (self._watch_ranks, self._watch_store)
        ]
        for thread in self._threads:
            thread.start()

    @contextlib.contextmanager
    def in_collective(self) -> Iterator[None]:
        """Context manager for a collective, or around several; the timeout restarts after each inner one."""
        outermost = self._waiting_since == float("inf")
        self._entered += 1
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = float("inf") if outermost else time.monotonic()

    @contextlib.contextmanager
    def working_alone(self) -> Iterator[None]:
        """Context manager for long work of this rank alone: the others wait `alone_timeout_s` if its process lives.

        Inside another one it marks a part of that work: the time restarts after it.
        """
        outermost = self._alone_since == float("inf")
        self._alone_since = time.monotonic()
        try:
            yield
        finally:
            self._alone_since = float("inf") if outermost else time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        for thread in self._threads:
            thread.join(self._silent_s)  # a thread that is stuck in a request to the store is left behind

    def _watch_ranks(self) -> None:
        while not self._closed.wait(self._interval_s):
            missing = None
            try:
                self._beat()
                if self._waits_too_long():
                    missing = self._find_missing()
            except RuntimeError as error:  # ends the run only if it hangs; stop_signal.py notices a dead launcher
                missing = f"the launcher's store does not answer ({str(error).splitlines()[0]})"
            if missing is not None and self._waits_too_long():
                self._give_up(missing)
                return

    def _watch_store(self) -> None:
        """End the process if `_watch_ranks` is stuck: a request to the store never returns if the network goes."""
        while not self._closed.wait(self._interval_s):
            if self._waits_too_long() and time.monotonic() - self._beat_at > self._silent_s:
                self._give_up("the launcher's store does not answer")
                return

    def _give_up(self, missing: str) -> None:
        if self._ending.acquire(blocking=False):  # only the first of the two threads to come here
            self._end(f"{missing}; waited {self._timeout_s:g} s (run.rank_timeout_s); {self.advice}")

    def _beat(self) -> None:
        self._number += 1
        self._beat_at = time.monotonic()
        alone_s = max(0.0, self._beat_at - self._alone_since)
        self._store.set(_key(self._generation, self._rank), f"{self._number} {self._entered} {alone_s}")

    def _waits_too_long(self) -> bool:
        return time.monotonic() - self._waiting_since > self._timeout_s

    def _find_missing(self) -> str | None:
        """Return a message that names the rank that this one waits for.

        None if that rank works alone and has time left, or if the collective ended meanwhile.
        """
        entered = self._entered
        before = self._read_beats()
        # Look twice, max(4 beats, a tenth of the timeout) apart: 8 s at least, 60 s at the default timeout of 600 s.
        for _ in range(max(SILENT_BEATS, round(SILENT_SHARE * self._timeout_s / self._interval_s))):
            self._closed.wait(self._interval_s)
            self._beat()
        after = self._read_beats()
        if self._entered != entered or not self._waits_too_long():
            return None
        stopped = [rank for rank, beat in after.items() if beat.number == before[rank].number]
        late = [rank for rank, beat in after.items() if beat.entered < entered and rank not in stopped]
        if stopped:
            return f"{_ranks(stopped)} did not arrive: the process is stopped, or its machine is gone"
        # Both looks count: a rank that ended its work alone between them is on its way to the collective.
        alone = [rank for rank in late if max(before[rank].alone_s, after[rank].alone_s) > 0]
        if alone:
            return self._find_overdue(after, alone)
        if late:
            return f"{_ranks(late)} did not arrive: the process lives, but is blocked elsewhere (data? disk?)"
        return "all ranks arrived, but nothing comes through the network"

    def _find_overdue(self, beats: dict[int, Beat], alone: list[int]) -> str | None:
        """Return a message that names the ranks that have worked alone for too long; None if there are none."""
        overdue = [rank for rank in alone if beats[rank].alone_s > self._alone_timeout_s]
        limit = f"{self._alone_timeout_s:g} s (run.alone_timeout_s)"
        return f"{_ranks(overdue)} evaluates or saves for more than {limit}: blocked (data? disk?)" if overdue else None

    def _read_beats(self) -> dict[int, Beat]:
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        return {rank: _parse_beat(self._store.get(_key(self._generation, rank))) for rank in others}


def _key(generation: str, rank: int) -> str:
    return f"mocokit/beat/{generation}/{rank}"


def _parse_beat(text: bytes) -> Beat:
    number, entered, alone_s = text.split()
    return Beat(int(number), int(entered), float(alone_s))


def _ranks(numbers: list[int]) -> str:
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {numbers}"


@contextlib.contextmanager
def time_limit(timeout_s: float, problem: str) -> Iterator[None]:
    """Context manager that ends the process, with the message `problem`, unless the block ends within `timeout_s`.

    For calls that wait in native code, where no exception of Python can interrupt them.
    """
    message = f"{problem}; waited {timeout_s:g} s (run.rank_timeout_s)"
    timer = threading.Timer(timeout_s, lambda: end_process(message))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_process(message: str) -> None:
    """Log `message` and end this process with EX_TEMPFAIL, without waiting for threads."""
    LOGGER.error(message)
    sys.stderr.write(f"mocokit: {message}\n")
    sys.stderr.flush()
    # Give the other ranks time to find the missing rank themselves: once this process is gone, all they see is a
    # broken connection.
    time.sleep(2 * BEAT_S)
    os._exit(EX_TEMPFAIL)
