import threading

import pytest

from mocokit.engine.background import BackgroundWriter


def test_a_task_runs_beside_the_caller_and_the_next_waits_for_it() -> None:
    writer = BackgroundWriter()
    may_end = threading.Event()
    done = list[int]()

    def slow() -> None:
        assert may_end.wait(10)
        done.append(1)

    writer.start(slow)
    assert done == []
    writer.raise_if_failed()  # still running: nothing to raise
    assert writer.is_busy()
    threading.Timer(0.05, may_end.set).start()
    writer.start(lambda: done.append(2))
    assert done[0] == 1
    writer.close()
    assert done == [1, 2]
    assert not writer.is_busy()


def test_a_failure_is_raised_once_where_the_training_thread_looks() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    writer = BackgroundWriter()
    writer.start(fail)
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    writer.raise_if_failed()
    writer.start(fail)
    with pytest.raises(OSError, match="No space left"):
        writer.start(lambda: None)
    writer.close()
