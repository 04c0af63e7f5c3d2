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
"""Beats that may be missed before a process counts as stopped, at least."""

SILENT_SHARE = 0.1
"""The same as a share of the timeout: a process on a crowded machine may get no turn for many seconds."""

STORE_SILENT_S = 20.0
"""Without an answer of the store after which the network counts as gone; its own limit is 10 s."""


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
    alone_s: float
    """Time for which it has worked alone so far, having said that the others should wait; 0: it does not."""


class RankWatch:
    """Beats for this rank and watches the others while it waits for them.

    Args:
        store: Shared by all ranks.
        generation: The same text on all ranks that were started together; the store may outlive them.
        rank: This rank.
        world_size: Number of ranks.
        timeout_s: Time that a collective may take.
        alone_timeout_s: Time for which a rank may work alone.
        end: Called with a message that names the rank; ends the process.

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
        end: Callable[[str], None] | None = None,
    ) -> None:
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
        self._since = float("inf")
        self._alone_since = float("inf")
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
    def arrive(self) -> Iterator[None]:
        """Around each collective; and around work that holds some, which starts to wait anew after each of them."""
        outermost = self._since == float("inf")
        self._entered += 1
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = float("inf") if outermost else time.monotonic()

    @contextlib.contextmanager
    def excuse(self) -> Iterator[None]:
        """Around long work of this rank alone: the others wait while its process lives, until `alone_timeout_s`."""
        self._alone_since = time.monotonic()
        try:
            yield
        finally:
            self._alone_since = float("inf")

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        for thread in self._threads:
            thread.join(self._silent_s)  # one that the store keeps waiting is left behind

    def _watch_ranks(self) -> None:
        while not self._closed.wait(self._interval_s):
            missing = None
            try:
                self._beat()
                if self._waits_too_long():
                    missing = self._find_missing()
            except RuntimeError as error:  # the launcher's end is noticed elsewhere; a hang is not
                missing = f"the launcher's store does not answer ({str(error).splitlines()[0]})"
            if missing is not None and self._waits_too_long():
                self._give_up(missing)
                return

    def _watch_store(self) -> None:
        """The store's client waits for ever when the network goes while it waits; the other thread is stuck then."""
        while not self._closed.wait(self._interval_s):
            if self._waits_too_long() and time.monotonic() - self._beat_at > self._silent_s:
                self._give_up("the launcher's store does not answer")
                return

    def _give_up(self, missing: str) -> None:
        if self._ending.acquire(blocking=False):  # once
            self._end(f"{missing}; waited {self._timeout_s:g} s (run.rank_timeout_s); the last checkpoint is good")

    def _beat(self) -> None:
        self._number += 1
        self._beat_at = time.monotonic()
        alone_s = max(0.0, self._beat_at - self._alone_since)
        self._store.set(self._key(self._rank), f"{self._number} {self._entered} {alone_s}")

    def _waits_too_long(self) -> bool:
        return time.monotonic() - self._since > self._timeout_s

    def _find_missing(self) -> str | None:
        """Who keeps this rank waiting; None: someone who asked for patience, or who came meanwhile."""
        entered = self._entered
        before = self._read_beats()
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
        alone = [rank for rank in late if max(before[rank].alone_s, after[rank].alone_s) > 0]  # or has just ended it
        if alone:
            return self._find_lost(after, alone)
        if late:
            return f"{_ranks(late)} did not arrive: the process lives, but is blocked elsewhere (data? disk?)"
        return "all ranks arrived, but nothing comes through the network"

    def _find_lost(self, beats: dict[int, Beat], alone: list[int]) -> str | None:
        """Who has worked alone for too long."""
        lost = [rank for rank in alone if beats[rank].alone_s > self._alone_timeout_s]
        limit = f"{self._alone_timeout_s:g} s (run.alone_timeout_s)"
        return f"{_ranks(lost)} evaluates or saves for more than {limit}: blocked (data? disk?)" if lost else None

    def _key(self, rank: int) -> str:
        return f"mocokit/beat/{self._generation}/{rank}"

    def _read_beats(self) -> dict[int, Beat]:
        """Of all other ranks."""
        beats = {}
        for rank in range(self._world_size):
            if rank != self._rank:
                number, entered, alone_s = self._store.get(self._key(rank)).split()
                beats[rank] = Beat(int(number), int(entered), float(alone_s))
        return beats


def _ranks(numbers: list[int]) -> str:
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {numbers}"


@contextlib.contextmanager
def limited(timeout_s: float, what: str) -> Iterator[None]:
    """End the process unless the block ends in time: it waits where nothing can interrupt it."""
    message = f"{what}; waited {timeout_s:g} s (run.rank_timeout_s)"
    timer = threading.Timer(timeout_s, lambda: end_process(message))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_process(message: str) -> None:
    """Say `message` and end this process with EX_TEMPFAIL (75: try again), whatever its other threads wait for."""
    LOGGER.error(message)
    sys.stderr.write(f"mocokit: {message}; continue with `mocokit resume`\n")
    sys.stderr.flush()
    time.sleep(2 * BEAT_S)  # the others find out by themselves, before the broken connection tells them less
    os._exit(os.EX_TEMPFAIL)
