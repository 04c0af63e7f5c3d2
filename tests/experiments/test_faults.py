"""Every fault of `make faults`, injected into short real runs. experiments/faults.py has the full-length runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.faults

SCRIPT = Path(__file__).parents[2] / "experiments" / "faults.py"

BIT_EQUAL = (
    "kill_process",
    "cut_checkpoint",
    "flipped_bit",
    "half_renamed",
    "full_disk",
    "term_while_saving",
    "bad_gradient",
    "two_runs",
    "blocked_mount",
    "jumping_clock",
    "kill_worker",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all runs; the undisturbed ones are shared by all tests."""
    return tmp_path_factory.mktemp("faults")


def _inject(fault: str, work: Path) -> dict[str, Any]:
    places = ["--work", str(work / "runs"), "--results", str(work / f"{fault}.json"), "--document", str(work / "t.md")]
    command = [sys.executable, str(SCRIPT), "--quick", "--keep", "--only", fault, *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    row: dict[str, Any] = json.loads((work / f"{fault}.json").read_text())["faults"][fault]
    if "not_run" in row:
        pytest.skip(row["not_run"])
    assert row["how"] in (work / "t.md").read_text(), "the script writes the row into the table"
    return row


@pytest.mark.parametrize("fault", BIT_EQUAL)
def test_a_run_that_was_hit_ends_bit_equal_to_one_that_was_not(fault: str, work: Path) -> None:
    row = _inject(fault, work)
    assert (row["bits_differing"], row["images_miscounted"]) == (0, 0)


def test_images_that_vanish_or_change_are_replaced_logged_and_not_miscounted(work: Path) -> None:
    assert _inject("images_vanish", work)["images_miscounted"] == 0


@pytest.mark.dist
@pytest.mark.parametrize("fault", ["kill_rank", "kill_launcher", "hung_rank"])
def test_ranks_that_were_hit_end_bit_equal_on_as_many_ranks(fault: str, work: Path) -> None:
    row = _inject(fault, work)
    assert (row["bits_differing"], row["images_miscounted"]) == (0, 0)


@pytest.mark.dist
@pytest.mark.parametrize("fault", ["short_cut", "long_cut", "lost_host"])
def test_two_hosts_whose_cable_or_second_host_failed_end_bit_equal_to_one_host(fault: str, work: Path) -> None:
    row = _inject(fault, work)
    assert (row["bits_differing"], row["images_miscounted"]) == (0, 0)


@pytest.mark.dist
def test_a_rank_that_starts_with_other_weights_is_named(work: Path) -> None:
    assert "rank 1 differs from the others in encoder_q" in _inject("different_rank", work)["said"]


@pytest.mark.dist
def test_fewer_ranks_go_on_along_the_same_trajectory(work: Path) -> None:
    row = _inject("world_sizes", work)
    assert row["largest_relative_difference"] < 1e-9
    assert row["images_miscounted"] == 0
