"""Rows of faults that fail or cannot be injected, and the test of a soak. test_faults.py injects the real faults."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import faults
import pytest
import soak
from fault_runs import NotPossibleError, Row, Runs

STARTED: list[subprocess.Popen[str]] = []


def breaks(runs: Runs, *, quick: bool) -> Row:
    """A run that ends with an error."""
    (runs.work / "patched.py").write_text("print('the disk is gone'); raise SystemExit(3)")
    STARTED.append(runs.start([], program=("-c", "import time; time.sleep(600)")))
    runs.finish(runs.start([], program=(str(runs.work / "patched.py"),)), code=0)
    raise AssertionError("unreachable")


def hangs(runs: Runs, *, quick: bool) -> Row:
    """A run that never ends."""
    runs.patience_s = 0.2
    runs.finish(runs.start([], program=("-c", "import time; time.sleep(600)")))
    raise AssertionError("unreachable")


def holds(runs: Runs, *, quick: bool) -> Row:
    """A run that ends well."""
    return {"times": 2, "bits_differing": 0, "said": f"in {runs.work}/run"}


def cannot(runs: Runs, *, quick: bool) -> Row:
    """A fault that the machine forbids."""
    raise NotPossibleError("may not mount")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return flags of faults.py, and replace its faults by the four above."""
    monkeypatch.setattr(faults, "FAULTS", (breaks, hangs, holds, cannot))
    return [
        *("--work", str(tmp_path / "work"), "--results", str(tmp_path / "faults.json")),
        *("--document", str(tmp_path / "reliability.md"), "--quick"),
    ]


def _rows(tmp_path: Path) -> dict[str, Any]:
    rows: dict[str, Any] = json.loads((tmp_path / "faults.json").read_text())["faults"]
    return rows


def test_a_fault_that_fails_or_hangs_becomes_a_row_and_the_others_still_run(places: list[str], tmp_path: Path) -> None:
    assert faults.main(places) == 1
    rows = _rows(tmp_path)
    assert rows["breaks"]["said"].startswith("FAILED: AssertionError in `runs.finish(")
    assert rows["breaks"]["said"].endswith("the disk is gone")
    assert rows["hangs"]["said"].startswith("FAILED: TimeoutExpired")
    assert rows["holds"] | {"load_before": 0, "machine": 0} == {
        "how": "A run that ends well",
        "steps": 30,
        "load_before": 0,
        "machine": 0,
        "times": 2,
        "bits_differing": 0,
        "said": "in RUNS/run",
    }
    assert rows["cannot"] == {"how": "A fault that the machine forbids", "not_run": "may not mount"}
    assert STARTED.pop().poll() is not None, "processes that a fault leaves running are ended"
    table = (tmp_path / "reliability.md").read_text()
    assert "| breaks | A run that ends with an error |  | 30 |" in table
    assert "| FAILED: TimeoutExpired" in table
    assert "| holds | A run that ends well | 2 | 30 | 0 bits differing |" in table


def test_rows_of_faults_that_are_not_named_are_kept(places: list[str], tmp_path: Path) -> None:
    old = {"how": "formerly", "times": 1, "steps": 100, "said": "of old"}
    (tmp_path / "faults.json").write_text(json.dumps({"faults": {"hangs": old}}))
    assert faults.main([*places, "--only", "holds"]) == 0
    rows = _rows(tmp_path)
    assert rows["hangs"] == old
    assert rows["breaks"]["not_run"] == "not run yet"
    assert rows["holds"]["times"] == 2


@pytest.mark.parametrize(("leak_mb_per_hour", "lost_handles", "flat"), [(0, 0, True), (40, 0, False), (0, 3, False)])
def test_a_soak_distinguishes_a_leak_from_memory_that_comes_and_goes(
    leak_mb_per_hour: float, lost_handles: int, flat: bool
) -> None:
    samples: list[dict[str, float]] = []
    for number in range(360):
        hours = number / 360
        busy = number % 3
        samples.append(
            {
                "hours": hours,
                "memory_mb": 900 + leak_mb_per_hour * hours + 0.5 * busy,
                "handles": 20 + 6 * busy + int(lost_handles * hours),
                "threads": 8 + busy,
                "processes": 1,
            }
        )
    judged = soak.judge({0: samples})["rank 0"]
    assert all(line["flat"] for line in judged.values()) == flat
    assert judged["memory_mb"]["slope_per_hour"] == pytest.approx(leak_mb_per_hour, abs=0.5)
    assert judged["threads"]["flat"]


def test_a_process_is_sampled() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(1, flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)  # it is up
        before = soak.sample(process.pid)
        process.kill()
    assert 3 < before["memory_mb"] < 100
    assert (before["threads"], before["processes"]) == (1, 0)
    assert before["handles"] >= 3
