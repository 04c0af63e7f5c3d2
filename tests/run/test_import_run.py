"""Official runs continue here and our runs continue there, without losing state."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import mocokit
from mocokit.cli import main
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.engine.checkpoint import list_checkpoints, load_checkpoint
from mocokit.export.to_official import to_official
from mocokit.run.export import export_run
from mocokit.run.import_run import import_run, read_official_run
from tests.conftest import TINY
from tests.run_process import final_state, same

Tiny = Callable[..., Config]
DIM = 16
QUEUE_SIZE = 48
BATCH = 16


class Official(nn.Module):
    """The parts of moco/builder.py in its order, written from its description; trained on something simple."""

    def __init__(self, *, mlp: bool) -> None:
        super().__init__()
        self.encoder_q, self.encoder_k = (models.resnet18(num_classes=DIM) for _ in range(2))
        if mlp:
            for encoder in (self.encoder_q, self.encoder_k):
                encoder.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), encoder.fc)
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.data.copy_(q.data)
            k.requires_grad = False
        self.queue: Tensor
        self.queue_ptr: Tensor
        self.register_buffer("queue", nn.functional.normalize(torch.randn(DIM, QUEUE_SIZE), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))


def _official_checkpoint(*, mlp: bool, epoch: int = 2, steps_per_epoch: int = 5) -> dict[str, Any]:
    net = nn.ModuleDict({"module": Official(mlp=mlp)})  # DistributedDataParallel's prefix
    moco: Any = net["module"]
    optimizer = torch.optim.SGD(net.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    for _ in range(2):
        images = torch.randn(4, 3, 32, 32)
        optimizer.zero_grad()
        moco.encoder_q(images).square().mean().backward()
        moco.encoder_k(images)
        optimizer.step()
    moco.queue_ptr[0] = epoch * steps_per_epoch * BATCH % QUEUE_SIZE
    return {"epoch": epoch, "arch": "resnet18", "state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}


def _continue(path: Path, photos: Path, out: Path, **settings: object) -> int:
    run = read_official_run(path)
    here = {name: value for name, value in TINY.items() if name.split(".")[0] in ("data", "run")}
    here |= {"data.source": str(photos), "method.bn_groups": 4, "optim.epochs": 3, **settings}
    return import_run(run, out, config=replace_settings(run.config, here))


@pytest.mark.parametrize("mlp", [False, True])
def test_an_official_run_comes_back_bit_equal(mlp: bool, photos: Path, tmp_path: Path) -> None:
    theirs = _official_checkpoint(mlp=mlp)
    torch.save(theirs, tmp_path / "checkpoint_0001.pth.tar")
    assert _continue(tmp_path / "checkpoint_0001.pth.tar", photos, tmp_path / "run") == 10
    export_run(tmp_path / "run", to="official", out=tmp_path / "again.pth.tar")
    again = torch.load(tmp_path / "again.pth.tar", weights_only=True)
    assert set(again) == {"epoch", "arch", "state_dict", "optimizer", "mocokit"}
    assert (again["epoch"], again["arch"]) == (2, "resnet18")
    assert sorted(again["state_dict"]) == sorted(theirs["state_dict"])
    assert same(dict(again["state_dict"]), dict(theirs["state_dict"]))
    assert same(again["optimizer"]["state"], theirs["optimizer"]["state"]), "momentum, under the same numbers"
    assert len(theirs["optimizer"]["state"]) == (64 if mlp else 62)
    (ours,) = again["optimizer"]["param_groups"]
    (official,) = theirs["optimizer"]["param_groups"]
    assert ours == {**official, "foreach": ours["foreach"]}, "lr, momentum, weight decay and numbering"


def test_the_official_code_can_load_what_we_write(finished_run: Callable[[str], Path], tmp_path: Path) -> None:
    """An independent model and optimizer load it strictly, and then hold our run's state."""
    run = finished_run("resnet18")
    export_run(run, to="official", out=tmp_path / "ours.pth.tar")
    file = torch.load(tmp_path / "ours.pth.tar", weights_only=True)
    moco = Official(mlp=True)
    moco.queue = torch.zeros(DIM, 40)  # as TINY has it
    net = nn.ModuleDict({"module": moco})
    optimizer = torch.optim.SGD(net.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    net.load_state_dict(file["state_dict"])
    optimizer.load_state_dict(file["optimizer"])
    state = final_state(run)
    assert torch.equal(moco.queue.T, state["method"]["queue.keys"])
    assert int(moco.queue_ptr) == state["method"]["queue._extra_state"]["num_enqueued"] % 40 == 32
    assert torch.equal(moco.encoder_k.fc[2].weight, state["method"]["encoder_k.head.2.weight"])
    ours = state["optimizer"]["state"]
    for number, parameter in enumerate(moco.encoder_q.parameters()):
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], ours[number]["momentum_buffer"])
    assert not any(parameter in optimizer.state for parameter in moco.encoder_k.parameters())


def test_our_run_through_an_official_file_continues_bit_equal(tiny: Tiny, tmp_path: Path) -> None:
    mocokit.pretrain(tiny(**{"model.arch": "resnet18"}), out=tmp_path / "run")
    list_checkpoints(tmp_path / "run" / "checkpoints")[-1].unlink()  # back to the end of epoch 1
    before = load_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    torch.save(to_official(before, arch="resnet18"), tmp_path / "ours.pth.tar")
    assert main(["import", str(tmp_path / "ours.pth.tar"), str(tmp_path / "back")]) == 0
    assert same(final_state(tmp_path / "back"), before), "image ids, pointer and settings too"
    assert mocokit.resume(tmp_path / "run").step == mocokit.resume(tmp_path / "back").step == 10
    assert same(final_state(tmp_path / "back"), final_state(tmp_path / "run"))


def test_an_official_run_is_resumed_from_the_command_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(_official_checkpoint(mlp=True), tmp_path / "theirs.pth.tar")
    flags = ["--data", str(photos), "--image-size", "32", "--global-batch-size", str(BATCH), "--bn-groups", "4"]
    flags += ["--epochs", "3", "--device", "cpu", "--workers", "0", "--run.knn-every", "0"]
    assert main(["import", str(tmp_path / "theirs.pth.tar"), str(tmp_path / "run"), *flags]) == 0
    assert f"resnet18 after 10 steps, queue and optimizer included; continue with: mocokit resume {tmp_path}" in (
        capsys.readouterr().out
    )
    state = final_state(tmp_path / "run")
    assert state["method"]["queue._extra_state"]["num_enqueued"] == 160, "pointer 160 % 48 = 16"
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert final_state(tmp_path / "run")["step"] == 15


def _narrow_head(checkpoint: dict[str, Any]) -> None:
    for encoder in ("encoder_q", "encoder_k"):
        for kind in ("weight", "bias"):
            name = f"module.{encoder}.fc.2.{kind}"
            checkpoint["state_dict"][name] = checkpoint["state_dict"][name][:8]


def _no_head(checkpoint: dict[str, Any]) -> None:
    for name in [name for name in checkpoint["state_dict"] if ".fc." in name]:
        del checkpoint["state_dict"][name]


def _wrong_architecture(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"]["module.encoder_q.layer5.0.conv1.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_narrow_head, "its head has 8 outputs, its queue keys of 16; they are from different runs"),
        (_no_head, "has no head"),
        (_wrong_architecture, "the nearest is resnet18: unknown keys: layer5.0.conv1.weight"),
        (lambda c: c.pop("optimizer"), "only official MoCo v1/v2 checkpoints with queue, epoch and optimizer"),
        (lambda c: c["state_dict"].pop("module.queue"), "lacks module.queue"),
    ],
)
def test_checkpoints_that_can_not_be_continued_are_refused(
    damage: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    checkpoint = _official_checkpoint(mlp=True)
    damage(checkpoint)
    torch.save(checkpoint, tmp_path / "theirs.pth.tar")
    with pytest.raises(ValueError, match=rf"checkpoint=.*theirs.pth.tar: .*{message}"):
        read_official_run(tmp_path / "theirs.pth.tar")


def test_settings_that_the_file_contradicts_are_refused(photos: Path, tmp_path: Path) -> None:
    torch.save(_official_checkpoint(mlp=True), tmp_path / "theirs.pth.tar")
    for setting, value, message in (
        ("model.dim", 64, "model.dim=64: the checkpoint's is 16"),
        ("method.queue_size", 64, "method.queue_size=64: the checkpoint's is 48"),
        ("model.arch", "resnet50", "model.arch=resnet50: the checkpoint's is resnet18"),
    ):
        with pytest.raises(ValueError, match=message):
            _continue(tmp_path / "theirs.pth.tar", photos, tmp_path / "run", **{setting: value})
    with pytest.raises(ValueError, match="preset=moco-v1: its head is not the file's"):
        read_official_run(tmp_path / "theirs.pth.tar", preset="moco-v1")
    assert not (tmp_path / "run").exists()
