import json
import math
from pathlib import Path

import pytest
import torch

from mocokit.engine import checkpoint
from mocokit.engine.health import warnings_of_metrics
from mocokit.engine.metrics import MeterBoard, MetricsLog
from tests.run_process import finish, start

CPU = torch.device("cpu")

FINITE = torch.tensor(True)


def _rows(*losses: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(losses), "contrast_acc": torch.tensor(losses) > 1}


def test_means_are_over_all_rows_since_the_last_call() -> None:
    board = MeterBoard(CPU)
    board.add(_rows(1.0, 2.0), step=0, finite=FINITE)
    board.add(_rows(6.0), step=1, finite=FINITE)
    assert board.means() == {"loss": 3.0, "contrast_acc": 2 / 3}
    board.add(_rows(5.0), step=2, finite=FINITE)
    assert board.means()["loss"] == 5.0


def test_the_first_bad_step_is_remembered() -> None:
    board = MeterBoard(CPU)
    board.add(_rows(1.0), step=3, finite=FINITE)
    assert board.bad_step() is None
    board.add(_rows(1.0, math.nan), step=4, finite=FINITE)
    board.add(_rows(math.inf), step=5, finite=FINITE)
    assert board.bad_step() == 4


def test_resuming_drops_lines_of_steps_that_will_be_done_again(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, from_step=0)
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut by a crash
    log = MetricsLog(tmp_path, from_step=2)
    log.write(3, {"loss": 33.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 33.0)]


def test_queries_that_know_their_group_are_called_a_leak() -> None:
    assert "BatchNorm leak" in warnings_of_metrics({"bn_leak": 0.3}, step=1000)[0]
    assert warnings_of_metrics({"bn_leak": 0.03}, step=1000) == []
    assert warnings_of_metrics({"bn_leak": 0.3}, step=10) == [], "the first steps say nothing"


def test_a_bad_gradient_counts_though_the_loss_is_finite() -> None:
    board = MeterBoard(torch.device("cpu"))
    board.add(_rows(1.0), step=3, finite=FINITE)
    assert board.bad_step() is None
    board.add(_rows(1.0), step=4, finite=~FINITE)
    board.add(_rows(1.0), step=5, finite=FINITE)
    assert board.bad_step() == 4


def test_rows_with_more_than_a_number_an_image_are_no_metrics() -> None:
    board = MeterBoard(CPU)
    board.add({**_rows(1.0, 3.0), "features": torch.ones(2, 8)}, step=0, finite=FINITE)
    assert board.means() == {"loss": 2.0, "contrast_acc": 0.5}


def test_steps_that_loss_scaling_skips_are_counted_and_only_many_in_a_row_are_an_error() -> None:
    board = MeterBoard(CPU, may_skip=True)
    for step, finite in enumerate([False, False, True, False]):
        board.add(_rows(1.0), step=step, finite=torch.tensor(finite))
    assert board.bad_step() is None
    assert board.most_skipped_in_a_row() == 2
    assert board.means()["skipped_steps"] == 3
    for step in range(4, 6):
        board.add(_rows(1.0), step=step, finite=~FINITE)
    assert board.means()["skipped_steps"] == 2, "of the steps since the last line"
    assert board.most_skipped_in_a_row() == 3, "a row goes on over a log line"
    board.add(_rows(math.nan), step=6, finite=~FINITE)
    assert board.bad_step() == 6, "a loss is never NaN for lack of a scale"


def test_a_metric_that_only_some_steps_have_is_the_mean_of_those() -> None:
    board = MeterBoard(CPU)
    board.add({**_rows(1.0, 3.0), "seldom": torch.tensor([4.0, 6.0])}, step=0, finite=FINITE)
    board.add(_rows(5.0, 7.0), step=1, finite=FINITE)
    assert board.means() == {"loss": 4.0, "contrast_acc": 0.75, "seldom": 5.0}


GOOD = [b'{"step": 1, "loss": 1.0}', b'{"step": 2, "loss": 2.0}', b'{"step": 2, "knn_acc": 0.5}']


@pytest.mark.parametrize(
    ("content", "num_damaged"),
    [
        (b"\n".join(GOOD) + b"\n", 0),
        (b"\n".join(GOOD), 0),  # without the last line break
        (b"\xef\xbb\xbf" + b"\r\n".join(GOOD) + b"\r\n", 0),  # from an editor
        (b"\n\n".join(GOOD) + b"\n\n", 0),
        (b"\n".join([*GOOD, b'{"step": 3, "lo']), 1),  # cut by a crash
        (b"\n".join([b'{"step": 1, "lo', *GOOD]) + b"\n", 1),
        (b'{"step": 1, "lo' + b"\n".join(GOOD) + b"\n", 1),  # cut, then written on without a line break
        (b"\0" * 4096 + b"\n".join(GOOD) + b"\n", 1),  # after a power failure
        (b"\n".join(GOOD) + b"\n" + b"\0" * 4096, 1),
        (b"\n".join([b'{"step": 1, "n": "\xff\xfe"}', *GOOD]) + b"\n", 1),  # not UTF-8
        (b"\n".join([b"[1]", b"7", b"null", b'"step"', b"{}", b"<html>", *GOOD]) + b"\n", 6),
        (b"\n".join([b'{"step": NaN, "loss": 1}', b'{"step": -1}', b'{"step": true}', b'{"step": 1.5}', *GOOD]), 4),
        (b"\n".join([b"[" * 100_000, b'{"step": 1, "loss": "a"}', *GOOD]), 2),
        (b"\n".join([b'{"step": 1, "loss": 9.0}', *GOOD]) + b"\n", 1),  # step 1 twice: the last one counts
    ],
)
def test_a_damaged_log_keeps_each_good_line_and_the_rest_lies_aside(
    content: bytes, num_damaged: int, tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    log = MetricsLog(tmp_path, from_step=2)
    log.write(3, {"loss": 3.0})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"\n".join([*GOOD, b'{"step": 3, "loss": 3.0}', b""])
    aside = tmp_path / "metrics.jsonl.damaged"
    assert aside.exists() == bool(num_damaged)
    assert log.problems == (
        [f"metrics.jsonl: {num_damaged} damaged or repeated lines moved to {aside.name}"] if num_damaged else []
    )
    if num_damaged:
        assert aside.read_bytes().count(b"\n") == num_damaged
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("content", [b"", b"\n", b"\0\0", b"\xff"])
def test_a_log_without_a_good_line_starts_anew(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    log = MetricsLog(tmp_path, from_step=5)
    log.close()
    assert log.latest == {}
    assert (tmp_path / "metrics.jsonl").read_bytes().strip() == b""


def test_the_log_is_replaced_whole_and_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([*GOOD, b'{"st']))
    before = path.read_bytes()

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "flush_to_disk", full)  # the last moment before the new file takes its name
    with pytest.raises(OSError, match="No space left"):
        MetricsLog(tmp_path, from_step=2)
    assert path.read_bytes() == before


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, from_step=0)
    log.write(1, {"loss": 1.0, "bn_leak": math.nan, "gauge": math.inf})
    log.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "loss": 1.0, "bn_leak": None, "gauge": None}
    again = MetricsLog(tmp_path, from_step=1)
    again.close()
    assert math.isnan(again.latest["gauge"])
    assert again.latest["loss"] == 1.0
    assert (tmp_path / "metrics.jsonl").read_text() == line


ON_RANKS = """
import os, signal, time
import torch
from mocokit import distributed
from mocokit.engine import monitoring
from mocokit.engine.metrics import MeterBoard, StepClock
from mocokit.engine.stop_signal import StopSignal

with distributed.session("cpu"), StopSignal() as signals:
    rank = distributed.rank()
    rows = [4, 8][rank]  # three BatchNorm groups of 4 on two ranks
    board = MeterBoard(torch.device("cpu"))
    board.add({"loss": torch.full((rows,), float(rank))}, step=0, finite=torch.tensor(True))
    assert abs(board.means()["loss"] - 8 / 12) < 1e-12, "the mean over images, not over ranks"

    distributed.barrier()
    start = time.perf_counter()
    clock = StepClock()
    clock.trained(rows)
    clock.waited(0.2 * rank)  # rank 1 waits for its images, rank 0 for rank 1
    time.sleep(0.4)
    values = clock.read()
    most_s = time.perf_counter() - start  # 0.4 s, more on a busy machine
    assert 12 / most_s <= values["images_per_s"] <= 12 / 0.4, values
    assert 0.2 / most_s <= values["data_wait_share"] <= 0.5, values

    def fail():
        assert distributed.is_main()
        raise RuntimeError("CUDA out of memory")

    done = monitoring.evaluate(distributed.barrier, fail)
    assert (done.values, done.problem) == ({}, "RuntimeError: CUDA out of memory"), done
    assert monitoring.evaluate(distributed.barrier, lambda: {"knn_acc": 0.5}).values == {"knn_acc": 0.5}

    assert not signals.agree()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.agree()
    assert signals.agreed == signal.SIGUSR1
    assert (signals.received is None) == (rank == 0)
    if rank == 0:
        os.kill(os.getpid(), signal.SIGINT)  # this rank's first Ctrl-C, and no second one: it ends nothing
        assert signals.received == signal.SIGINT
"""


@pytest.mark.dist
def test_ranks_report_one_truth(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(ON_RANKS, encoding="utf-8")
    code, output = finish(start([], ranks=2, program=(str(script),)))
    assert code == 0, output
