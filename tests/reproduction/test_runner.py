import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mocokit.reproduction.results import load_result
from mocokit.reproduction.runner import predict_minutes, run_table
from tests.reproduction.small_table import small_plan, small_table
from tests.run_process import finish, start, wait_for_step
from tests.small_presets import add_narrow_backbone, remove_narrow_backbone


@pytest.fixture(autouse=True)
def _narrow() -> Iterator[None]:
    add_narrow_backbone()
    yield
    remove_narrow_backbone()


def test_a_failed_cell_is_reported_the_rest_goes_on_and_finished_cells_are_kept(photos: Path, tmp_path: Path) -> None:
    plan = small_plan(photos, tmp_path, table=small_table(second_lr=1e30))
    assert predict_minutes(plan) > 0
    first = list(run_table(plan))
    assert [outcome.state for outcome in first] == ["done", "failed"]
    assert "NonFinite" in first[1].message
    assert plan.unfinished() == [(plan.cells[1], 0)]

    folder = plan.folder(plan.cells[0], 0)
    written = (folder / "result.json").stat().st_mtime_ns
    again = list(run_table(plan))
    assert [outcome.state for outcome in again] == ["kept", "failed"]
    assert (folder / "result.json").stat().st_mtime_ns == written
    assert again[0].result == first[0].result == load_result(folder)
    assert set(first[0].result.metrics) == {"linear", "kNN"}  # type: ignore[union-attr]


def test_a_folder_with_another_run_is_left_alone(photos: Path, tmp_path: Path) -> None:
    plan = small_plan(photos, tmp_path)
    folder = plan.folder(plan.cells[0], 0)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("[optim]\nepochs = 3\n")
    first = next(iter(run_table(plan)))
    assert first.state == "failed"
    assert "the run in it has other settings than those asked for: data.source=" in first.message
    assert [path.name for path in folder.iterdir()] == ["config.toml"]


def test_a_killed_cell_is_resumed_and_ends_as_an_undisturbed_one(photos: Path, tmp_path: Path) -> None:
    whole = small_plan(photos, tmp_path / "whole")
    killed = small_plan(photos, tmp_path / "killed")
    process = start(
        [str(photos), str(killed.out)],
        program=("-m", "tests.reproduction.small_table"),
        OMP_NUM_THREADS=str(
            torch.get_num_threads()
        ),  # the same number as in this process, which finishes the run: rounding depends on it
    )
    folder = killed.folder(killed.cells[0], 0)
    wait_for_step(folder, 12)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert load_result(folder) is None

    for plan in (killed, whole):
        assert [outcome.state for outcome in run_table(plan)] == ["done", "done"]
    for cell in whole.cells:
        runs = [plan.folder(cell, 0) for plan in (killed, whole)]
        ours, theirs = (load_result(run) for run in runs)
        assert ours is not None
        assert theirs is not None
        assert ours.metrics == theirs.metrics
        assert _losses(runs[0]) == _losses(runs[1])


def _losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]
