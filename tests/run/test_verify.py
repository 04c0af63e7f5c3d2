"""The judge: recorded runs of the official code, replayed through the classes that pre-training uses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mocokit.cli import main
from mocokit.run.verify import bundled_traces, load_trace, replay, verify
from tests.run_process import finish, start

GOLDEN = Path(__file__).parents[1] / "golden"
TRACES = ["moco_v1_world1", "moco_v2_world1", "moco_v2_world4"]


def test_all_golden_traces_are_bundled() -> None:
    assert [path.stem for path in bundled_traces()] == TRACES


@pytest.mark.parametrize("trace", TRACES)
def test_the_official_run_is_reproduced(trace: str) -> None:
    rows = replay(GOLDEN / f"{trace}.npz")
    assert {row.quantity for row in rows} == {
        "loss",
        "positive_similarity",
        "queue_ptr",
        "queue",
        "encoder_q parameters",
        "encoder_q BatchNorm statistics",
        "encoder_k parameters",
        "encoder_k BatchNorm statistics",
    }
    assert all(row.relative_error <= 1e-12 for row in rows), rows


@pytest.mark.parametrize("micro_groups", [1, 2, 3])
def test_micro_batches_of_whole_groups_do_not_change_the_run(micro_groups: int) -> None:
    rows = replay(GOLDEN / "moco_v2_world4.npz", micro_groups=micro_groups)
    assert all(row.relative_error <= 1e-12 for row in rows), rows


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_4_gpu_run_is_reproduced_on_gloo_ranks(ranks: int) -> None:
    code, output = finish(start(["verify", str(GOLDEN / "moco_v2_world4.npz"), "--micro-groups", "1"], ranks=ranks))
    assert code == 0, output[-2000:]
    assert "8 of 8 quantities within 1e-12" in output


def _broken(tmp_path: Path, **changes: np.ndarray) -> Path:
    path = tmp_path / "trace.npz"
    arrays: dict[str, Any] = {**load_trace(GOLDEN / "moco_v1_world1.npz"), **changes}
    np.savez(path, **arrays)
    return path


def test_a_wrong_number_is_found_and_ends_the_command_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = load_trace(GOLDEN / "moco_v1_world1.npz")["loss"].copy()
    loss[5, 0] *= 1 + 1e-9
    path = _broken(tmp_path, loss=loss)
    assert main(["verify", str(path)]) == 1
    assert "WRONG" in capsys.readouterr().out
    assert main(["verify", str(path), "--rtol", "1e-6"]) == 0


def test_a_nan_never_passes(tmp_path: Path) -> None:
    loss = load_trace(GOLDEN / "moco_v1_world1.npz")["loss"].copy()
    loss[5, 0] = np.nan
    assert max(row.relative_error for row in verify([_broken(tmp_path, loss=loss)])) == float("inf")


def test_a_file_that_is_no_trace_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut")
    np.savez(tmp_path / "b.npz", views=np.zeros(3))
    for name, message in (("a", "can't be read"), ("b", "lacks")):
        with pytest.raises(ValueError, match=message):
            load_trace(tmp_path / f"{name}.npz")
