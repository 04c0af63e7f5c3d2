import json
import math
from pathlib import Path

import torch

from mocokit.engine.health import warnings_of_metrics
from mocokit.engine.metrics import MeterBoard, MetricsLog

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
