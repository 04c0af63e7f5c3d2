"""One command starts a run, goes on with it, or takes its place."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mocokit
from mocokit.cli import main
from mocokit.config.schema import Config
from mocokit.engine.checkpoint import list_checkpoints
from mocokit.engine.run_folder import RunFolder
from tests.run_process import final_state, finish, flags_of, same, start, start_process, wait_for_step

Tiny = Callable[..., Config]
PRESET = ["pretrain", "moco-v2-small"]

DIES_ONCE = """
import os, sys, threading, time
from pathlib import Path

def die_at_step_6():
    log = Path(sys.argv[-1]) / "metrics.jsonl"
    while not (log.exists() and log.read_text().count('"loss"') >= 6):
        time.sleep(0.01)
    os.kill(os.getpid(), 9)

if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    threading.Thread(target=die_at_step_6, daemon=True).start()
from mocokit.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of 5 steps; tests work on copies."""
    from tests.conftest import TINY

    run = tmp_path_factory.mktemp("finished") / "run"
    mocokit.pretrain("moco-v2-small", settings={**TINY, "data.source": str(photos), "optim.epochs": 1}, out=run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_an_absent_run_starts_a_begun_one_goes_on_and_a_complete_one_is_done(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny()
    asked = [*PRESET, *flags_of(config), "--out", str(tmp_path / "run"), "--exist", "resume"]
    assert main(asked) == 0
    whole = final_state(tmp_path / "run")
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    newest.unlink()
    for _ in range(2):
        assert main(asked) == 0
        assert same(final_state(tmp_path / "run"), whole)
    assert capsys.readouterr().out.count("done: 10 steps; backbone: ") == 3


def test_a_run_of_other_settings_is_refused_and_they_are_named(tiny: Tiny, run: Path) -> None:
    before = (run / "config.toml").read_bytes()
    other = tiny(**{"optim.epochs": 1, "optim.lr": 0.04, "run.seed": 7})
    with pytest.raises(ValueError, match=r"run.seed=7 \(its own: 0\)") as raised:
        mocokit.pretrain(other, out=run, exist="resume")
    assert "optim.lr=0.04 (its own: 0.05), run.seed=7" in str(raised.value)
    assert "epochs" not in str(raised.value), "it is the same"
    assert (run / "config.toml").read_bytes() == before


def test_overwrite_removes_what_a_run_made_and_nothing_else(tiny: Tiny, run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    (run / "checkpoints" / "notes.txt").write_text("mine too")
    (run / "evaluation.json").write_text("[]")
    old = final_state(run)
    mocokit.pretrain(tiny(**{"optim.epochs": 2, "run.seed": 7}), out=run, exist="overwrite")
    assert (run / "notes.txt").read_text() == "mine"
    assert (run / "checkpoints" / "notes.txt").read_text() == "mine too"
    assert not (run / "evaluation.json").exists(), "it told of weights that are gone"
    assert final_state(run)["step"] == 10 and not same(final_state(run)["method"], old["method"])
    assert "resumed" not in (run / "environment.toml").read_text()
    assert (run / "metrics.jsonl").read_text().count('"loss"') == 10


@pytest.mark.parametrize("settings", [{"data.source": "/nowhere"}, {"data.global_batch_size": 96}])
def test_a_new_run_that_can_not_begin_leaves_the_old_one(settings: dict[str, object], tiny: Tiny, run: Path) -> None:
    files = sorted(run.rglob("*"))
    with pytest.raises(ValueError, match=r"no such file or folder|larger than the data set"):
        mocokit.pretrain(tiny(**{"method.queue_size": 96, **settings}), out=run, exist="overwrite")
    assert sorted(run.rglob("*")) == files
    assert final_state(run)["step"] == 5


@pytest.mark.parametrize("exist", ["error", "resume", "overwrite"])
def test_a_folder_that_no_run_made_is_refused(exist: str, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "checkpoints").mkdir()
    (tmp_path / "thesis" / "checkpoints" / "chapter.txt").write_text("1")
    with pytest.raises(ValueError, match=r"out=.*thesis: exists and is not empty; please choose another folder"):
        mocokit.pretrain(tiny(), out=tmp_path / "thesis", exist=exist)  # type: ignore[arg-type]
    assert (tmp_path / "thesis" / "checkpoints" / "chapter.txt").read_text() == "1"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"out=.*file"):
        mocokit.pretrain(tiny(), out=tmp_path / "file", exist=exist)  # type: ignore[arg-type]


def test_another_word_than_the_three_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exist=replace: choose one of error, resume, overwrite"):
        mocokit.pretrain(tiny(), out=tmp_path / "run", exist="replace")  # type: ignore[arg-type]


@pytest.mark.parametrize("exist", ["error", "resume"])
def test_a_start_killed_before_its_config_was_written_starts_again(exist: str, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "environment.toml").write_text("")
    (tmp_path / "run" / "config.toml.partial").write_text("[da")
    (tmp_path / "run" / ".lock").touch()
    result = mocokit.pretrain(tiny(**{"optim.epochs": 1}), out=tmp_path / "run", exist=exist)  # type: ignore[arg-type]
    assert result.step == 5
    assert not (tmp_path / "run" / "config.toml.partial").exists()


def test_a_run_that_another_process_holds_is_neither_resumed_nor_overwritten(tiny: Tiny, run: Path) -> None:
    with RunFolder(run).locked():
        for exist in ("resume", "overwrite"):
            code, output = finish(start([*PRESET, *flags_of(tiny()), "--out", str(run), "--exist", exist]))
            assert code == 1 and f"in use by process {os.getpid()}" in output
    assert final_state(run)["step"] == 5


@pytest.mark.dist
def test_ranks_start_and_resume_by_the_same_command(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(**{"optim.epochs": 4, "run.save_minutes": 0.002})
    asked = [*PRESET, *flags_of(config), "--exist", "resume", "--out", str(tmp_path / "run")]
    process = start(asked, ranks=2)
    wait_for_step(tmp_path / "run", 3)
    os.kill(process.pids[1], signal.SIGKILL)
    assert finish(process)[0] != 0
    code, output = finish(start(asked, ranks=2))
    assert code == 0, output
    assert final_state(tmp_path / "run")["step"] == 20


@pytest.mark.slow
@pytest.mark.dist
def test_torchrun_restarts_a_run_whose_rank_died_once(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(**{"optim.epochs": 6, "run.save_minutes": 0.002})
    (tmp_path / "dies_once.py").write_text(DIES_ONCE)
    run = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    asked = [*PRESET, *flags_of(config), "--exist", "resume", "--out", str(run)]
    code, output = finish(start_process(asked, program=[*launcher, str(tmp_path / "dies_once.py")]))
    assert code == 0, output
    assert "done: 30 steps; backbone:" in output
    assert (run / "environment.toml").read_text().count("[[resumed]]") == 1
    assert finish(start([*PRESET, *flags_of(config), "--out", str(tmp_path / "whole")], ranks=2))[0] == 0
    weights, whole = (final_state(path)["method"] for path in (run, tmp_path / "whole"))
    assert all(torch.equal(weights[name], value) for name, value in whole.items() if isinstance(value, torch.Tensor))
