"""Runs that another version of the numbers began."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import mocokit
from mocokit.cli import main
from mocokit.config.schema import Config
from mocokit.engine.backbone_file import save_backbone
from mocokit.engine.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from mocokit.engine.numerics import CHANGES, NUMERICS, changes_since
from tests.run_process import final_state, same

Tiny = Callable[..., Config]


@pytest.fixture
def half_run(tiny: Tiny, tmp_path: Path) -> Path:
    """Return a run of 10 steps whose newest checkpoint is that of step 5."""
    mocokit.pretrain(tiny(), out=tmp_path / "run")
    list_checkpoints(tmp_path / "run" / "checkpoints")[-1].unlink()
    return tmp_path / "run"


def _rewrite(run: Path, numerics: int | None) -> None:
    """Make the newest checkpoint one of version `numerics`; None: of a version that recorded none."""
    path = list_checkpoints(run / "checkpoints")[-1]
    state = load_checkpoint(path)
    del state["numerics"]
    if numerics is not None:
        state["numerics"] = numerics
    save_checkpoint(path.parent, state, step=state["step"], keep_last=9)


def test_an_older_run_stops_in_one_line_that_says_what_changed(
    half_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _rewrite(half_run, None)
    before = load_checkpoint(list_checkpoints(half_run / "checkpoints")[-1])
    assert main(["resume", str(half_run)]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("mocokit: numerics=1: ")
    for part in (*CHANGES[2], "--accept-changes", f"now {NUMERICS}"):
        assert part in line
    assert same(final_state(half_run), before), "a refused resume leaves the run as it was"


def test_accepted_changes_are_written_into_the_log_and_the_run_goes_on(half_run: Path) -> None:
    _rewrite(half_run, 1)
    assert main(["resume", str(half_run), "--accept-changes"]) == 0
    assert "; accepted" in (half_run / "log.txt").read_text()
    assert final_state(half_run)["numerics"] == NUMERICS
    assert mocokit.resume(half_run).step == 10, "asked once: the run is one of this version now"


def test_a_run_of_a_newer_version_asks_for_a_newer_mocokit(half_run: Path) -> None:
    _rewrite(half_run, NUMERICS + 1)
    for accept_changes in (False, True):
        with pytest.raises(ValueError, match="made by a newer mocokit"):
            mocokit.resume(half_run, accept_changes=accept_changes)


def test_a_run_of_this_version_needs_no_flag(half_run: Path) -> None:
    assert mocokit.resume(half_run).step == 10
    assert "accepted" not in (half_run / "log.txt").read_text()


@pytest.mark.parametrize(("numerics", "word"), [(1, "an older"), (NUMERICS + 1, "a newer")])
def test_evaluating_a_backbone_of_another_version_tells_it(
    half_run: Path, numerics: int, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = mocokit.load_backbone(half_run)
    assert "trained by" not in caplog.text
    save_backbone(half_run / "backbone.safetensors", loaded.backbone, replace(loaded.card, numerics=numerics))
    mocokit.load_backbone(half_run)
    assert f"trained by {word} mocokit (numerics {numerics}" in caplog.text
    imported = replace(loaded.card, numerics=1, origin="theirs.pth (layout)")
    caplog.clear()
    save_backbone(half_run / "backbone.safetensors", loaded.backbone, imported)
    mocokit.load_backbone(half_run)
    assert "trained by" not in caplog.text, "other projects have no such version"


def test_the_backbone_file_and_resolved_toml_record_the_version(half_run: Path) -> None:
    assert mocokit.load_backbone(half_run).card.numerics == NUMERICS
    assert f"numerics = {NUMERICS}\n" in (half_run / "resolved.toml").read_text()


def test_changes_of_all_later_versions_are_named_in_order() -> None:
    assert changes_since(NUMERICS) == ""
    assert changes_since(1) == "; ".join(change for version in range(2, NUMERICS + 1) for change in CHANGES[version])
