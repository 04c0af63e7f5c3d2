"""The printed commands are run through the real command line, up to the call that would train or evaluate."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro

from mocokit.cli import main
from mocokit.cli.detect import Detect
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.reproduction.imagenet import LAUNCH, Places, commands, shell_line
from mocokit.reproduction.table import Cell, Table
from mocokit.reproduction.tables import TABLES

ALL = [(table, cell) for table in TABLES.values() for cell in table.cells]
PLACES = Places(out=Path("my runs"))


@pytest.mark.parametrize(("table", "cell"), ALL, ids=lambda value: value.name)
def test_the_printed_commands_run_that_cell(table: Table, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def note_config(config: Config, *, out: str, **_rest: object) -> SimpleNamespace:
        asked.update(config=config, out=out)
        return SimpleNamespace(signal=None, step=0, folder=Path(out), next_command="")

    def note_protocols(run: str, **settings: object) -> list[object]:
        asked.update({**settings, "run": run, "out": asked["out"]})
        return []  # no rows: the command ends with 1

    monkeypatch.setattr("mocokit.run.pretrain.pretrain", note_config)
    monkeypatch.setattr("mocokit.evaluate.evaluation.evaluate", note_protocols)
    pretrain, linear, *detect = (shlex.split(shell_line(line)) for line in commands(table, cell, PLACES, seed=2))
    run = f"my runs/{table.name}/{cell.name}/seed_2"
    assert main(pretrain[len(LAUNCH.split()) :]) == 0
    assert asked["config"] == replace_settings(cell.config, {"data.source": "imagenet/train", "run.seed": 2})
    assert main(linear[1:]) == 1
    assert asked["out"] == asked["run"] == run
    assert (asked["data"], asked["test"]) == ("imagenet/train", "imagenet/val")
    assert asked["protocols"] == ["linear/simclr" if cell.preset == "simclr" else "linear/moco"]
    assert len(detect) == ("AP50" in table.metrics)
    for line in detect:
        assert line[:3] == ["mocokit", "detect", run]
        assert tyro.cli(Detect, args=line[3:]).trials == 5


def test_the_table_shows_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "ablation" / "v1" / "seed_0"
    (run / "detection").mkdir(parents=True)
    row = {
        "protocol": "linear/moco@b256,e100",
        "features": "pre-trained",
        "accuracy": 0.607,
        "seed": 0,
        "minutes": 1.0,
        "train_images": 1,
        "test_images": 1,
        "data": "",
        "test": "",
        "weights": "",
    }
    best = {**row, "protocol": "linear/moco@b256,e100,best-on-test", "accuracy": 0.9}
    (run / "evaluation.json").write_text(json.dumps([row, best]))
    for trial, ap50 in enumerate((81.0, 82.0)):
        (run / "detection" / f"trial_{trial}.json").write_text(json.dumps({"metrics": {"AP50": ap50, "AP": 55.0}}))
    assert main(["reproduce", "ablation", "--scale", "imagenet", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    v1, mlp = (next(line.split("  ") for line in lines if line.startswith(f"{name} ")) for name in ("v1", "MLP"))
    cells = [cell.strip() for cell in v1 if cell.strip()]
    assert cells == ["v1", "60.6 [1]", "81.5 [2]", "55.9 [2]", "62.6 [2]", "60.7", "81.5 +- 0.7 (2)", "55.0 +- 0.0 (2)"]
    assert [cell for cell in mlp if cell.strip()][-1].endswith("]"), "cells not run are empty"
