"""Workers and a step on the same cores, in turns for as long as that is the faster way.

A step that keeps every core busy loses twice what workers take from it: while one of its threads is held up, the
others wait for it. Then views are better made between steps, by all workers at once. A step that leaves cores idle, or
views that take long, are better off side by side. Which it is shows in how long the step has to wait.
"""

import math
import multiprocessing
import select
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

B = TypeVar("B")

MAX_WAIT_SHARE = 0.2
"""Of the time: a step that waits more than this is better off beside its workers (docs/performance.md)."""
PATIENCE_S = 0.3
"""How much more than that may be waited, so that one slow file decides nothing."""


class Turns:
    """Says whose turn it is to all workers at once.

    A pipe with a byte in it while the workers may work, which they look at and never take: no worker holds anything
    that the others would miss if it were killed, as it would with a `multiprocessing.Event`.
    """

    def __init__(self) -> None:
        self._reader, self._writer = multiprocessing.Pipe(duplex=False)
        self._workers_turn = False

    def give(self, *, workers: bool) -> None:
        """Let the workers work, or stop after the image that each is at; called by the process of the step."""
        if workers and not self._workers_turn:
            self._writer.send_bytes(b"\0")
        elif not workers and self._workers_turn:
            self._reader.recv_bytes()
        self._workers_turn = workers

    def each(self, work: Callable[..., Any], *rows: Iterable[Any]) -> Iterator[Any]:
        """`map`, each call of which waits until the workers may work; for a worker."""
        for row in zip(*rows, strict=False):
            self._wait()
            yield work(*row)

    def _wait(self) -> None:
        turn = select.poll()
        turn.register(self._reader, select.POLLIN)
        turn.poll()


class BatchesInTurns(Generic[B]):
    """The loader's batches: its workers work while the reader waits, and always once the reader has waited too much.

    Args:
        loader: Its workers make each image by `turns.each`.
        turns: The workers' and the reader's.

    """

    def __init__(self, loader: Iterable[B], turns: Turns) -> None:
        self.loader = loader
        self.turns = turns

    def __iter__(self) -> Iterator[B]:
        batches = iter(self.loader)
        wait = _Wait()
        try:
            while True:
                self.turns.give(workers=True)
                wait.starts()
                batch = next(batches, None)
                wait.ends()
                if batch is None:
                    return
                self.turns.give(workers=wait.is_too_long)
                yield batch
        finally:
            self.turns.give(workers=True)  # whoever waits for a turn can't be told to end


class _Wait:
    """How much more than its share the reader has waited; a wait that is long once is made up for by shorter ones."""

    def __init__(self) -> None:
        self.is_too_long = False
        self._excess_s = 0.0
        self._start_s = self._last_end_s = math.nan

    def starts(self) -> None:
        """The reader asks for a batch."""
        self._start_s = time.perf_counter()

    def ends(self) -> None:
        """The reader has it. The first wait counts for nothing: workers start."""
        now_s = time.perf_counter()
        if not math.isnan(self._last_end_s):
            excess_s = now_s - self._start_s - MAX_WAIT_SHARE * (now_s - self._last_end_s)
            self._excess_s = max(0.0, self._excess_s + excess_s)
        self.is_too_long |= self._excess_s > PATIENCE_S
        self._last_end_s = now_s
