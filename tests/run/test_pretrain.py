"""Whole runs on real JPEGs, in this process."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import models

import mocokit
from mocokit.config.schema import Config
from mocokit.config.toml import from_toml, replace_settings
from mocokit.engine.checkpoint import list_checkpoints
from mocokit.engine.health import NonFiniteLossError
from mocokit.methods.contract import Rows
from mocokit.methods.moco import MoCo, MoCoBatch
from mocokit.nets.backbones import build_backbone
from tests.run_process import final_state, same

Tiny = Callable[..., Config]


def _metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_folder_holds_what_a_run_is(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(**{"run.knn_every": 1, "run.knn_k": 5})
    result = mocokit.pretrain(config, out=tmp_path / "run")
    assert (result.step, result.total_steps, result.signal) == (10, 10, None)
    run = tmp_path / "run"
    assert from_toml((run / "config.toml").read_text()) == config
    for name in ("resolved.toml", "environment.toml", "log.txt", "views.png", "tensorboard", "backbone.safetensors"):
        assert (run / name).exists(), name
    losses = [line for line in _metrics(run) if "loss" in line]
    assert [line["step"] for line in losses] == list(range(1, 11))
    for name in ("contrast_acc", "bn_leak", "images_per_s", "data_wait_share", "lr", "queue_fill"):
        assert all(name in line for line in losses), name
    assert [line["lr"] for line in losses] == pytest.approx([0.05] * 5 + [0.025] * 5), "cosine, by epoch"
    assert losses[-1]["queue_fill"] == 1.0
    assert [line["step"] for line in _metrics(run) if "knn_acc" in line] == [5, 10]
    assert np.asarray(Image.open(run / "views.png")).std() > 10


def test_the_backbone_loads_into_torchvision_with_only_fc_missing(tiny: Tiny, tmp_path: Path) -> None:
    mocokit.pretrain(tiny(**{"model.arch": "resnet18", "optim.epochs": 1}), out=tmp_path / "run")
    net = models.resnet18()
    missing, unexpected = net.load_state_dict(load_file(tmp_path / "run" / "backbone.safetensors"), strict=False)
    assert (sorted(missing), unexpected) == (["fc.bias", "fc.weight"], [])
    loaded = mocokit.load_backbone(tmp_path / "run")
    net.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(net.eval()(images), loaded.backbone(images))
    state = final_state(tmp_path / "run")["method"]
    assert torch.equal(loaded.backbone.get_parameter("conv1.weight"), state["encoder_q.backbone.conv1.weight"])


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tiny: Tiny, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        mocokit.pretrain(tiny(**{"optim.epochs": 1, "run.seed": seed}), out=tmp_path / name)
    states = {name: final_state(tmp_path / name)["method"] for name in "abc"}
    assert same(states["a"], states["b"])
    assert not same(states["a"], states["c"])


@pytest.mark.parametrize("changes", [{"method.micro_groups": 1}, {"data.workers": 2}, {"run.channels_last": False}])
def test_what_only_says_who_computes_changes_no_loss(tiny: Tiny, tmp_path: Path, changes: dict[str, object]) -> None:
    settings = {"run.precision": "fp64", "optim.epochs": 1}
    mocokit.pretrain(tiny(**settings), out=tmp_path / "a")
    mocokit.pretrain(tiny(**settings, **changes), out=tmp_path / "b")
    a, b = ([line["loss"] for line in _metrics(tmp_path / name)] for name in "ab")
    assert b == pytest.approx(a, rel=1e-9)
    a, b = (final_state(tmp_path / name)["method"]["encoder_q.backbone.conv1.weight"] for name in "ab")
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_an_out_folder_in_use_is_an_error_that_names_resume(tiny: Tiny, tmp_path: Path) -> None:
    mocokit.pretrain(tiny(**{"optim.epochs": 1}), out=tmp_path / "run")
    before = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(ValueError, match=r"exists and is not empty; continue it with `mocokit resume"):
        mocokit.pretrain(tiny(), out=tmp_path / "run")
    assert (tmp_path / "run" / "config.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.global_batch_size": 96, "method.queue_size": 96}, r"larger than the data set of 80 images"),
        ({"method.queue_size": 15}, r"method.queue_size=15: smaller than data.global_batch_size=16"),
        ({"method.bn_groups": 3}, r"method.bn_groups=3: must divide data.global_batch_size=16"),
        ({"run.device": "cuda"}, r"run.device='cuda': torch sees no GPU"),
        ({"run.device": "gpu"}, r"run.device='gpu': not a device"),
        ({"run.precision": "fp16"}, r"run.precision='fp16': needs a GPU"),
        ({"model.arch": "resnet19"}, r"model.arch='resnet19': unknown"),
        ({"data.source": "/nowhere"}, r"data=/nowhere: no such file or folder"),
        (
            {"augment.local_crops": 2, "augment.local_size": 24, "model.arch": "timm/test_vit"},
            r"augment.local_size=24: not a multiple of the backbone's patches of 16 px",
        ),
    ],
)
def test_what_can_not_run_says_so_before_any_file_appears(
    tiny: Tiny, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    if "run.device" in settings and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=message):
        mocokit.pretrain(tiny(**settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember = MoCo.remember

    def poison(self: MoCo, batch: MoCoBatch, rows: Rows) -> None:
        remember(self, batch, rows)
        if self.queue.num_enqueued == 7 * 16:  # after the 7th step
            self.queue.keys.fill_(math.nan)

    monkeypatch.setattr(MoCo, "remember", poison)
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 7; the last good checkpoint is .*step_000000005"):
        mocokit.pretrain(tiny(), out=tmp_path / "run")
    assert final_state(tmp_path / "run")["step"] == 5
    assert "not finite at step 7" in (tmp_path / "run" / "log.txt").read_text()


def test_bad_images_are_named_in_the_log_and_the_run_goes_on(tiny: Tiny, own_photos: Path, tmp_path: Path) -> None:
    bad = sorted(own_photos.rglob("*.jpg"))[5]
    bad.write_bytes(bad.read_bytes()[:300])
    result = mocokit.pretrain(
        tiny(**{"data.source": str(own_photos), "data.max_bad_share": 0.02}), out=tmp_path / "run"
    )
    assert result.step == 10
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count(f"bad image {bad}") == 1
    assert "1 of 80 images could not be read, and others took their places" in log
    assert "runcated" in log


def test_too_many_bad_images_stop_the_run_with_examples(tiny: Tiny, own_photos: Path, tmp_path: Path) -> None:
    for path in sorted(own_photos.rglob("*.jpg"))[:8]:
        path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"max_bad_share=0.01: \d+ of 80 images can't be used, for example .*empty file"
    ):
        mocokit.pretrain(tiny(**{"data.source": str(own_photos)}), out=tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    count = int(re.findall(r"(\d+) of 80 images can't be used", log)[-1])
    named = set(re.findall(r"bad image (\S+): empty file", log))
    assert len(named) == count, "the message says that log.txt names each"


def test_the_log_tells_the_images_and_names_the_files_left_out(
    tiny: Tiny, own_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(own_photos / "cat", tmp_path / "test" / "cat")
    for number in range(3):
        (own_photos / "cat" / f"IMG_{number}.heic").write_bytes(b"x")
    settings = {"data.source": str(own_photos), "data.test": str(tmp_path / "test"), "run.knn_every": 2, "run.knn_k": 5}
    with pytest.raises(ValueError, match=r"^data.max_bad_share=0.01: 3 of 83 images are left out: 3 .heic files"):
        mocokit.pretrain(tiny(**settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    mocokit.pretrain(tiny(**settings, **{"data.max_bad_share": 0.05, "optim.epochs": 1}), out=tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    for line in (
        "data: 80 images in 5 classes (brick 16, cat 16, ",
        "; left out: 3 .heic files (not read; convert them",
    ):
        assert line in log
        assert line in capsys.readouterr().err or line.startswith(";")
    assert [f"left out: cat/IMG_{number}.heic: " in log for number in range(3)] == [True] * 3


def test_a_cut_checkpoint_is_passed_over_on_resume(tiny: Tiny, tmp_path: Path) -> None:
    mocokit.pretrain(tiny(), out=tmp_path / "whole")
    mocokit.pretrain(tiny(), out=tmp_path / "run")
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:5000])
    assert mocokit.resume(tmp_path / "run").step == 10
    assert same(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))
    assert "using an older checkpoint" in (tmp_path / "run" / "log.txt").read_text()


def test_a_run_killed_before_its_first_checkpoint_starts_again(tiny: Tiny, tmp_path: Path) -> None:
    mocokit.pretrain(tiny(**{"optim.epochs": 1}), out=tmp_path / "run")
    want = final_state(tmp_path / "run")
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        path.unlink()
    assert mocokit.resume(tmp_path / "run").step == 5
    assert same(final_state(tmp_path / "run"), want)


def test_a_relative_data_path_is_found_again_from_another_folder(
    tiny: Tiny, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    settings = {"data.source": photos.name, "data.test": photos.name, "optim.epochs": 1, "run.knn_every": 1}
    mocokit.pretrain(tiny(**settings), out=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert mocokit.resume("run").step == 5


def test_resuming_a_finished_run_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    mocokit.pretrain(tiny(**{"optim.epochs": 1}), out=tmp_path / "run")
    state = final_state(tmp_path / "run")
    result = mocokit.resume(tmp_path / "run")
    assert (result.step, result.signal) == (5, None)
    assert same(final_state(tmp_path / "run"), state)


def test_resuming_on_other_data_is_refused(tiny: Tiny, own_photos: Path, tmp_path: Path) -> None:
    mocokit.pretrain(tiny(**{"data.source": str(own_photos)}), out=tmp_path / "run")
    for path in sorted(own_photos.rglob("*.jpg"))[:20]:
        path.unlink()
    with pytest.raises(
        ValueError, match=r"60 images now: 20 removed \(brick/000.jpg, brick/001.jpg, brick/002.jpg, \.\.\.\)"
    ):
        mocokit.resume(tmp_path / "run")


def test_unlabelled_images_train_without_a_monitor(tiny: Tiny, photos: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat.txt"
    flat.write_text("\n".join(str(path) for path in sorted(photos.rglob("*.jpg"))))
    settings = {"data.source": str(flat), "run.knn_every": 1, "optim.epochs": 1}
    assert "knn_acc" not in mocokit.pretrain(tiny(**settings), out=tmp_path / "run").metrics
    with pytest.raises(ValueError, match="the training images have no labels"):
        mocokit.pretrain(tiny(**settings, **{"data.test": str(photos)}), out=tmp_path / "other")


def test_one_image_is_not_a_data_set(tiny: Tiny, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.jpg").write_bytes(next(photos.rglob("*.jpg")).read_bytes())
    with pytest.raises(ValueError, match="larger than the data set of 1 images; use at most 1"):
        mocokit.pretrain(tiny(**{"data.source": str(tmp_path / "one")}), out=tmp_path / "run")


def test_a_vision_transformer_trains_without_batchnorm(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(**{"model.arch": "vit_tiny_patch16_224", "optim.epochs": 1, "optim.lr": 1e-3})
    assert mocokit.pretrain(config, out=tmp_path / "run").step == 5
    assert "without BatchNorm in the encoder it only costs time" in capsys.readouterr().err
    state = final_state(tmp_path / "run")["method"]
    first = build_backbone("vit_tiny_patch16_224").state_dict()
    assert {f"encoder_q.backbone.{name}" for name in first} <= set(state)
    with pytest.raises(ValueError, match="not a multiple of the backbone's patches"):
        mocokit.pretrain(replace_settings(config, {"data.image_size": 40}), out=tmp_path / "other")
