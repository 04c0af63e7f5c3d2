import json
import math
from pathlib import Path

import pytest
import torch

from mocokit.engine.health import warnings_of_config, warnings_of_metrics
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


def _config_warnings(**changes: object) -> list[str]:
    settings = {"bn_groups": 4, "shuffle": True, "queue_size": 100, "num_images": 1000, "mask_same_image": False}
    return warnings_of_config(**{**settings, **changes})  # type: ignore[arg-type]


def test_settings_that_make_shuffling_bn_useless_give_a_warning() -> None:
    assert _config_warnings() == []
    assert "shuffling BN has no effect" in _config_warnings(bn_groups=1)[0]
    assert "share BatchNorm statistics" in _config_warnings(shuffle=False)[0]
    assert "more negatives than the 50 images" in _config_warnings(num_images=50)[0]
    assert _config_warnings(num_images=50, mask_same_image=True) == []


@pytest.mark.parametrize("method", ["simclr", "moco-v3", "memory-bank"])
def test_methods_without_a_leak_give_no_warning(method: str) -> None:
    assert _config_warnings(method=method, bn_groups=1, num_images=50) == []


@pytest.mark.parametrize("method", ["simclr", "moco-v3"])
def test_views_that_share_small_groups_give_a_warning(method: str) -> None:
    assert "method.bn_groups=4: both views" in _config_warnings(method=method)[0]
    assert _config_warnings(method=method, batchnorm=False) == []


def test_end_to_end_keys_can_leak_like_mocos() -> None:
    assert "shuffling BN has no effect" in _config_warnings(method="end-to-end", bn_groups=1)[0]


def test_queries_that_reveal_their_group_are_called_a_leak() -> None:
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
