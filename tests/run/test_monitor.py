"""The kNN monitor: what it can't measure is told at the start, and an evaluation that fails ends no run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import mocokit
from mocokit.config.schema import Config
from mocokit.engine.checkpoint import list_checkpoints
from mocokit.methods.contract import Rows
from mocokit.methods.moco import MoCo, MoCoBatch
from tests.run_process import final_state, same

Tiny = Callable[..., Config]

EACH_EPOCH = {"run.knn_every": 1, "run.knn_k": 5}


def _accuracies(run: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["knn_acc"]) for line in lines if "knn_acc" in line]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run.knn_max_images": 0}, r"run.knn_max_images=0: must be at least 2"),
        ({"run.knn_max_images": -5}, r"run.knn_max_images=-5: must be at least 2"),
        ({"run.knn_max_images": 2}, r"run.knn_max_images=2: only 1 images vote, fewer than the run.knn_k=5 neighbours"),
        ({"run.knn_max_images": 20, "run.knn_k": 19}, r"run.knn_max_images=20: only 18 images vote"),
        ({"run.knn_max_images": 4, "data.test": "PHOTOS"}, r"run.knn_max_images=4: 4 images vote and 0 are classified"),
        ({"data.test": "FLAT"}, r"data.test=.*: no labels"),
        ({"data.test": "OTHER"}, r"data.test=.*: classes \[.zebra.\] are not among those of the training images"),
        ({"data.test": "/nowhere"}, r"/nowhere: no such file or folder"),
    ],
)
def test_settings_that_allow_no_accuracy_are_refused_before_any_file_appears(
    settings: dict[str, object], message: str, tiny: Tiny, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos / "cat", tmp_path / "other" / "cat")
    shutil.copytree(photos / "cat", tmp_path / "other" / "zebra")
    shutil.copytree(photos / "cat", tmp_path / "flat")
    places = {"PHOTOS": str(photos), "FLAT": str(tmp_path / "flat"), "OTHER": str(tmp_path / "other")}
    changes = {name: places.get(str(value), value) for name, value in settings.items()}
    with pytest.raises(ValueError, match=message):
        mocokit.pretrain(tiny(**{**EACH_EPOCH, **changes}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "warning", "num_accuracies"),
    [
        ({"run.knn_k": 200}, "run.knn_k=200: more neighbours than the 72 images that vote, so all of them do", 1),
        ({"run.knn_max_images": 2, "run.knn_k": 1}, "kNN monitor: 1 of 2 classes have no image that votes", 1),
        ({"data.source": "CATS"}, "no kNN monitor: all images are of one class (cat)", 0),
    ],
)
def test_an_accuracy_that_means_less_than_it_seems_is_told_and_the_run_goes_on(
    settings: dict[str, object],
    warning: str,
    num_accuracies: int,
    tiny: Tiny,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cats = tmp_path / "cats.csv"
    cats.write_text("".join(f"{path},cat\n" for path in sorted((photos / "cat").iterdir())))
    changes = {name: str(cats) if value == "CATS" else value for name, value in settings.items()}
    config = tiny(**{**EACH_EPOCH, "optim.epochs": 1, "method.mask_same_image": True, **changes})
    mocokit.pretrain(config, out=tmp_path / "run")
    assert f"warning: {warning}" in capsys.readouterr().err
    assert warning in (tmp_path / "run" / "log.txt").read_text()
    assert len(_accuracies(tmp_path / "run")) == num_accuracies


def test_a_monitor_whose_images_vanish_warns_and_the_run_goes_on(
    tiny: Tiny,
    own_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    remember = MoCo.remember

    def unmount(self: MoCo, batch: MoCoBatch, rows: Rows) -> None:
        remember(self, batch, rows)
        if self.queue.num_enqueued == 7 * 16:
            shutil.rmtree(own_photos)

    monkeypatch.setattr(MoCo, "remember", unmount)
    config = tiny(**{**EACH_EPOCH, "data.test": str(own_photos)})
    result = mocokit.pretrain(config, out=tmp_path / "run")
    assert result.step == 10
    assert [step for step, _ in _accuracies(tmp_path / "run")] == [5]
    assert "warning: epoch 2: not evaluated (ValueError: data: none of the images" in capsys.readouterr().err
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "WARNING epoch 2: not evaluated" in log
    assert "Traceback" in log, "the log has the details"


class NoEval(nn.Module):
    """A backbone that works in training mode only."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, 2), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 24, 3, 2))
        mocokit.declare_feature_dim(self, 24)

    def forward(self, images: Tensor) -> Tensor:
        if not self.training and len(images) > 2:  # mocokit tries two images at the start
            raise self.error("only for training")
        features: Tensor = self.body(images)
        return features.mean(dim=(2, 3))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, TypeError, KeyError])
def test_after_a_failed_evaluation_the_network_trains_as_before(
    error: type[Exception], tiny: Tiny, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = NoEval(error)
    for name, every in (("with", 1), ("without", 0)):
        config = tiny(**{**EACH_EPOCH, "run.knn_every": every})
        mocokit.pretrain(config, out=tmp_path / name, backbone=net)
    assert "not evaluated" in (tmp_path / "with" / "log.txt").read_text()
    assert same(final_state(tmp_path / "with")["method"], final_state(tmp_path / "without")["method"])


def test_a_run_killed_between_its_last_save_and_the_rest_is_completed_by_resume(tiny: Tiny, tmp_path: Path) -> None:
    """The checkpoint is written first, then the backbone, then the evaluation: a kill can come between them."""
    run = tmp_path / "run"
    whole = mocokit.pretrain(tiny(**EACH_EPOCH), out=run)
    log = (run / "metrics.jsonl").read_text()
    weights = load_file(run / "backbone.safetensors")
    lines = log.splitlines(keepends=True)
    assert "knn_acc" in lines[-1]
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    (run / "backbone.safetensors").unlink()
    resumed = mocokit.resume(run)
    assert (run / "metrics.jsonl").read_text() == log
    assert same(load_file(run / "backbone.safetensors"), weights)
    assert mocokit.load_backbone(run).card.step == 10
    assert resumed.metrics == pytest.approx(whole.metrics)
    (run / "backbone.safetensors").write_bytes(b"cut")
    assert mocokit.resume(run).metrics["knn_acc"] == whole.metrics["knn_acc"]
    assert same(load_file(run / "backbone.safetensors"), weights)
    assert (run / "metrics.jsonl").read_text() == log, "what was evaluated is not evaluated again"


def test_a_damaged_log_is_no_obstacle_to_resume_and_is_told(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    mocokit.pretrain(tiny(), out=run)
    list_checkpoints(run / "checkpoints")[-1].unlink()
    log = run / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[2] = b"\xff\x00 garbage\n"
    log.write_bytes(b"".join(lines))
    assert mocokit.resume(run).step == 10
    assert (
        "warning: metrics.jsonl: 1 damaged or repeated lines moved to metrics.jsonl.damaged" in capsys.readouterr().err
    )
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert (run / "metrics.jsonl.damaged").read_bytes() == lines[2]
