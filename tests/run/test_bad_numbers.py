"""NaN and infinite numbers in whole runs: none reaches a checkpoint or a backbone file, and each is told."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mocokit
from mocokit.config.schema import Config
from mocokit.engine.checkpoint import list_checkpoints
from mocokit.engine.health import MAX_SKIPPED_IN_A_ROW, NonFiniteLossError
from mocokit.engine.precision import Precision
from mocokit.methods.contract import Rows
from mocokit.methods.moco import MoCo, MoCoBatch
from tests.run_process import final_state

Tiny = Callable[..., Config]


class Poison(torch.autograd.Function):
    """The identity, whose gradient is `factor` times what it should be."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class BadGradients(nn.Module):
    """A backbone with a finite loss, and gradients of NaN from its forward pass `first` to `last`."""

    def __init__(self, first: int, last: float = math.inf) -> None:
        super().__init__()
        self.first = first
        self.last = last
        self.calls = 0
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, 2), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 24, 3, 2))
        mocokit.declare_feature_dim(self, 24)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images).mean(dim=(2, 3))
        if torch.is_grad_enabled() and self.training:
            self.calls += 1
            if self.first <= self.calls <= self.last:
                features = Poison.apply(features, math.nan)
        return features


@pytest.fixture
def _scaled_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss scaling as with fp16, which needs a GPU, on a run in fp32."""

    class Scaled(Precision):
        def __init__(self, name: str, device: torch.device) -> None:
            super().__init__(name, device)
            self.scaler = torch.amp.GradScaler("cpu")

    monkeypatch.setattr("mocokit.run.build.Precision", Scaled)


def _lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("_scaled_on_the_cpu")
def test_a_gradient_that_is_always_nan_stops_a_run_with_loss_scaling(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"40 steps in a row, up to step 42, .*run.precision=bf16 or fp32"):
        mocokit.pretrain(
            tiny(**{"optim.epochs": 20, "run.log_every": 2}), out=tmp_path / "run", backbone=BadGradients(3)
        )
    lines = _lines(tmp_path / "run")
    assert sum(line["skipped_steps"] for line in lines) == MAX_SKIPPED_IN_A_ROW - 2, "up to the line before"
    assert lines[0]["skipped_steps"] == 0
    assert lines[0]["loss_scale"] == 65536
    assert lines[-1]["loss_scale"] == pytest.approx(65536 / 2 ** (lines[-1]["step"] - 2))
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        state = torch.load(path, weights_only=True)["method"]
        assert all(torch.isfinite(value).all() for value in state.values() if isinstance(value, Tensor))


@pytest.mark.usefixtures("_scaled_on_the_cpu")
def test_skipped_steps_at_the_start_are_counted_and_the_run_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    result = mocokit.pretrain(tiny(), out=tmp_path / "run", backbone=BadGradients(1, 4))
    assert result.step == 10
    assert [line["skipped_steps"] for line in _lines(tmp_path / "run")] == [1] * 4 + [0] * 6


def test_without_loss_scaling_the_first_bad_gradient_stops_the_run(tiny: Tiny, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16", "fp64"):
        config = tiny(**{"run.precision": precision, "optim.clip_norm": 1.0})
        with pytest.raises(NonFiniteLossError, match=r"loss or gradient is not finite at step 7; the last good"):
            mocokit.pretrain(config, out=tmp_path / precision, backbone=BadGradients(8))
        assert final_state(tmp_path / precision)["step"] == 5


def test_weights_that_overflow_in_the_last_step_reach_no_file(tiny: Tiny, tmp_path: Path) -> None:
    """Loss and gradient of the only step are finite; what the step makes of the weights is not."""
    config = tiny(**{"optim.epochs": 1, "data.global_batch_size": 80, "method.queue_size": 80, "optim.lr": 1e300})
    with pytest.raises(NonFiniteLossError, match=r"encoder_q.*weight is not finite at step 1; there is no checkpoint"):
        mocokit.pretrain(config, out=tmp_path / "run")
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")
    assert not (tmp_path / "run" / "backbone.safetensors").exists()


@pytest.mark.parametrize("name", ["encoder_q.backbone.bn1.running_var", "encoder_k.backbone.bn1.running_mean"])
def test_statistics_that_no_loss_reads_are_watched_too(
    name: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember = MoCo.remember

    def poison(self: MoCo, batch: MoCoBatch, rows: Rows) -> None:
        remember(self, batch, rows)
        if self.queue.num_enqueued == 7 * 16:
            self.get_buffer(name).fill_(math.nan)

    monkeypatch.setattr(MoCo, "remember", poison)
    with pytest.raises(NonFiniteLossError, match=rf"{name} is not finite at step 10; .*step_000000005"):
        mocokit.pretrain(tiny(), out=tmp_path / "run")
    assert final_state(tmp_path / "run")["step"] == 5


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("optim.lr", math.inf),
        ("optim.clip_norm", math.inf),
        ("optim.weight_decay", math.inf),
        ("method.temperature", math.nan),
        ("augment.blur_radius_px", (0.1, math.inf)),
        ("run.save_minutes", math.inf),
    ],
)
def test_a_setting_is_a_finite_number(setting: str, value: object, tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=rf"{setting}=.*: must be a finite number"):
        tiny(**{setting: value})
