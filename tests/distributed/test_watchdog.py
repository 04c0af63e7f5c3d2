"""The watchdog alone, with threads as ranks; test_faults.py tries it on real processes."""

import threading
import time

import pytest

from mocokit.distributed import watchdog
from mocokit.distributed.watchdog import RankWatch

TIMEOUT_S = 0.4
ALONE_TIMEOUT_S = 3.0


class _Store:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.broken = False
        self.network = threading.Event()
        self.network.set()

    def set(self, key: str, value: str) -> None:
        if self.broken:
            raise RuntimeError("connection reset")
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        self.network.wait()
        return self.values[key]


class _Ranks:
    """Watchdogs of three ranks, on one store."""

    def __init__(self) -> None:
        self.store = _Store()
        self.messages = dict[int, str]()
        self.ended = threading.Event()
        self.watches = [
            RankWatch(
                self.store,
                generation="g",
                rank=rank,
                world_size=3,
                timeout_s=TIMEOUT_S,
                alone_timeout_s=ALONE_TIMEOUT_S,
                end=self._end(rank),
            )
            for rank in range(3)
        ]

    def _end(self, rank: int):  # type: ignore[no-untyped-def]
        def end(message: str) -> None:
            self.messages[rank] = message
            self.ended.set()

        return end

    def wait(self, *, ranks: tuple[int, ...], seconds: float) -> str:
        """Hold `ranks` in a collective until a watchdog ends them; return its message, or "" after `seconds`."""
        with self.watches[ranks[0]].in_collective(), self.watches[ranks[-1]].in_collective():
            self.ended.wait(seconds)
        for watch in self.watches:
            watch.close()
        return next(iter(self.messages.values()), "")


def test_a_rank_that_is_elsewhere_is_named() -> None:
    message = _Ranks().wait(ranks=(0, 1), seconds=10)
    assert message.startswith("rank 2 did not arrive: the process lives, but is blocked elsewhere")
    assert "waited 0.4 s (run.rank_timeout_s)" in message


def test_a_rank_that_no_longer_beats_is_named_as_stopped() -> None:
    ranks = _Ranks()
    ranks.watches[1].close()  # as SIGSTOP does to all threads
    assert ranks.wait(ranks=(0, 2), seconds=10).startswith("rank 1 did not arrive: the process is stopped")


def test_a_rank_that_works_alone_is_waited_for() -> None:
    ranks = _Ranks()
    with ranks.watches[0].working_alone():
        assert ranks.wait(ranks=(1, 2), seconds=6 * TIMEOUT_S) == ""


def test_a_rank_that_works_alone_for_too_long_is_named() -> None:
    ranks = _Ranks()
    begun = time.monotonic()
    with ranks.watches[0].working_alone():
        message = ranks.wait(ranks=(1, 2), seconds=20)
    assert message.startswith("rank 0 evaluates or saves for more than 3 s (run.alone_timeout_s)")
    assert time.monotonic() - begun > ALONE_TIMEOUT_S


class _Beats(_Store):
    """A store that returns the given heartbeats of another rank, one after the other."""

    def __init__(self, *beats: str) -> None:
        super().__init__()
        self.beats = list(beats)

    def get(self, key: str) -> bytes:
        return self.beats.pop(0).encode() if len(self.beats) > 1 else self.beats[0].encode()


@pytest.mark.parametrize(("then", "ended"), [("2 0 0.0", False), ("2 0 9.0", True)])
def test_a_rank_that_has_just_ended_its_work_alone_is_waited_for(then: str, ended: bool) -> None:
    messages = list[str]()
    store = _Beats("1 0 2.5", then)
    watch = RankWatch(
        store,
        generation="a",
        rank=0,
        world_size=2,
        timeout_s=TIMEOUT_S,
        alone_timeout_s=ALONE_TIMEOUT_S,
        end=messages.append,
    )
    with watch.in_collective():
        while len(store.beats) > 1:
            time.sleep(0.01)
        time.sleep(TIMEOUT_S * 1.2)  # it looks twice, four beats apart
    watch.close()
    assert bool(messages) == ended, messages


def test_collectives_that_end_in_time_end_nothing() -> None:
    ranks = _Ranks()
    deadline = time.monotonic() + 4 * TIMEOUT_S
    while time.monotonic() < deadline:
        with ranks.watches[0].in_collective(), ranks.watches[1].in_collective():
            time.sleep(TIMEOUT_S / 8)
    for watch in ranks.watches:
        watch.close()
    assert ranks.messages == {}


def test_a_store_that_is_gone_ends_only_a_rank_that_waits() -> None:
    ranks = _Ranks()
    ranks.store.broken = True
    time.sleep(2 * TIMEOUT_S)
    assert ranks.messages == {}
    assert "store does not answer (connection reset)" in ranks.wait(ranks=(0, 1), seconds=10)


def test_a_store_that_never_answers_ends_a_rank_that_waits() -> None:
    ranks = _Ranks()
    ranks.store.network.clear()
    message = ranks.wait(ranks=(0, 1), seconds=10)
    ranks.store.network.set()
    assert message.startswith("the launcher's store does not answer; waited 0.4 s")


@pytest.mark.parametrize(("seconds", "ended"), [(0.0, False), (1.0, True)])
def test_a_start_that_never_comes_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, seconds: float, ended: bool
) -> None:
    messages = list[str]()
    monkeypatch.setattr(watchdog, "end_process", messages.append)
    with watchdog.time_limit(0.3, "not all ranks came to the start"):
        time.sleep(seconds)
    time.sleep(0.5 - seconds / 2)
    assert messages == ["not all ranks came to the start; waited 0.3 s (run.rank_timeout_s)"] * ended


def test_the_process_ends_with_a_message_and_the_code_for_try_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = list[int]()
    monkeypatch.setattr(watchdog.os, "_exit", codes.append)  # type: ignore[attr-defined]
    monkeypatch.setattr(watchdog, "BEAT_S", 0.0)
    watchdog.end_process("rank 3 did not arrive")
    assert codes == [75]
    assert "mocokit: rank 3 did not arrive\n" in capsys.readouterr().err
