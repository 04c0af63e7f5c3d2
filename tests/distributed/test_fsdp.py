"""Sharded encoders on real ranks; test_presets.py compares the trajectories of 1, 2 and 4 ranks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings, to_toml
from mocokit.run.build import build_run
from tests.run_process import final_state, finish, flags_of, start, wait_for_step
from tests.small_presets import small

pytestmark = pytest.mark.dist


@pytest.fixture
def config(photos: Path) -> Config:
    """A ViT for 20 steps, with a kNN evaluation and a checkpoint every 5."""
    return replace_settings(small("moco-v3-vit-s", photos), {"run.shard": True, "run.knn_every": 1})


def _lines(run: Path, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_a_sharded_run_continues_in_one_process_and_back(config: Config, tmp_path: Path) -> None:
    """Two ranks shard the checkpoint of one process, and the other way round."""
    whole = tmp_path / "whole"
    run = tmp_path / "run"
    command = ["pretrain", "moco-v3-vit-s", *flags_of(config), "--out"]
    assert finish(start([*command, str(whole)]))[0] == 0
    process = start([*command, str(run)], ranks=2)
    for step, ranks in ((6, 0), (11, 2)):
        wait_for_step(run, step)
        process.terminate()
        finish(process)
        process = start(["resume", str(run)], ranks=ranks)
    code, output = finish(process)
    assert code == 0, output[-3000:]
    for name in ("loss", "knn_acc"):
        assert _lines(run, name) == pytest.approx(_lines(whole, name), rel=1e-8)
    wanted = final_state(whole)
    got = final_state(run)
    for name, value in wanted["method"].items():
        assert torch.allclose(got["method"][name], value, rtol=1e-7, atol=1e-10), name
    moments = [(number, key) for number, state in wanted["optimizer"]["state"].items() for key in state]
    assert moments
    for number, key in moments:
        value = wanted["optimizer"]["state"][number][key]
        assert torch.allclose(got["optimizer"]["state"][number][key], value, rtol=1e-6, atol=1e-12), key


def test_two_ranks_hold_half_each_and_train_in_float32_too(config: Config, tmp_path: Path) -> None:
    program = f"""
import os, torch
from mocokit import distributed
from mocokit.run.build import build_run, build_batches
from mocokit.plan.bench import trainer
from mocokit.config.toml import from_toml
from torch.distributed.tensor import DTensor
with distributed.session("cpu"):
    config = from_toml(open({str(tmp_path / "c.toml")!r}).read())
    parts = build_run(config, torch.device("cpu"))
    held = sum(p.to_local().numel() for p in parts.method.parameters() if isinstance(p, DTensor))
    train = trainer(parts)
    for step, batch in enumerate(build_batches(config, parts, start_step=0, total_steps=2)):
        assert train(batch, step)
    with open(os.path.join({str(tmp_path)!r}, "held" + os.environ["RANK"]), "w") as file:  # not printed: lines mix
        print(held, sum(p.numel() for p in parts.method.parameters()), file=file)
"""
    (tmp_path / "c.toml").write_text(to_toml(replace_settings(config, {"run.precision": "fp32"})))
    (tmp_path / "held.py").write_text(program)
    code, output = finish(start([], ranks=2, program=(str(tmp_path / "held.py"),)))
    assert code == 0, output[-3000:]
    held = [tuple(map(int, (tmp_path / f"held{rank}").read_text().split())) for rank in (0, 1)]
    assert sum(own for own, _ in held) == held[0][1]
    assert max(own for own, _ in held) < 0.55 * held[0][1]


def test_only_adamw_takes_sharded_parameters(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match=r"optim.name=sgd: run.shard needs adamw"):
        build_run(tiny(**{"run.shard": True}), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"run.compile=on: not with run.shard"):
        tiny(**{"run.shard": True, "run.compile": "on"})
