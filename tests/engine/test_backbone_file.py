"""Backbone files of modules that are not part of mocokit: cards whose `arch` is own/ClassName."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mocokit.engine.backbone_file import BackboneCard, load_backbone, random_backbone, save_backbone
from mocokit.nets.backbones import declare_feature_dim
from mocokit.run.export import export_run

CARD = BackboneCard(
    arch="own/TinyNet", stem="imagenet", image_size=32, eval_crop_ratio=1.0, mean=(0.5,) * 3, std=(0.25,) * 3, step=7
)


class TinyNet(nn.Module):
    """(N, 3, H, W) -> (N, 8)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        declare_feature_dim(self, width)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.conv(images)).relu()  # (N, 8, H-2, W-2)
        rows = maps.mean(dim=3).transpose(1, 2)  # (N, H-2, 8)
        features: Tensor = self.attention(rows, rows, rows, need_weights=False)[0].mean(dim=1)
        return features


class NoReset(TinyNet):
    """A weight that no reset_parameters() draws."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(8))


@pytest.fixture
def trained() -> TinyNet:
    """A TinyNet whose BatchNorm statistics and weights have moved."""
    net = TinyNet()
    net(torch.randn(4, 3, 32, 32) + 1)
    return net


@pytest.fixture
def file(trained: TinyNet, tmp_path: Path) -> Path:
    save_backbone(tmp_path / "own.safetensors", trained, CARD)
    return tmp_path / "own.safetensors"


def test_an_own_backbone_is_asked_for(file: Path) -> None:
    message = (
        r"^run=.*own.safetensors: its backbone own/TinyNet is not part of mocokit; give the module: load_backbone\("
    )
    with pytest.raises(ValueError, match=message):
        load_backbone(file)
    with pytest.raises(
        ValueError, match=r"^backbone=None: its backbone own/TinyNet is not part of mocokit; give the m"
    ):
        random_backbone(CARD, seed=0)


def test_the_weights_go_into_a_copy_of_the_given_module(file: Path, trained: TinyNet) -> None:
    given = TinyNet()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    loaded = load_backbone(file, backbone=given)
    images = torch.randn(2, 3, 32, 32)
    assert (loaded.card, loaded.backbone.training) == (CARD, False)
    assert torch.equal(loaded.backbone(images), trained.eval()(images))
    assert given.training and all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_a_module_of_other_shapes_is_refused(file: Path) -> None:
    message = r"its weights are not those of the given TinyNet \(10 differ: attention.in_proj_bias\)"
    with pytest.raises(ValueError, match=message):
        load_backbone(file, backbone=TinyNet(width=16))
    with pytest.raises(ValueError, match=r"not those of the given NoReset \(1 differ: token\)"):
        load_backbone(file, backbone=NoReset())


def test_an_own_random_backbone_keeps_no_trained_weight_and_follows_its_seed(trained: TinyNet) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    fresh, again, other = (random_backbone(CARD, seed=seed, backbone=trained).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected), "the caller's random state is untouched"
    assert all(torch.equal(value, again[name]) for name, value in fresh.items())
    for name in ("conv.weight", "conv.bias", "attention.in_proj_weight"):
        assert not torch.equal(fresh[name], other[name]), name
        assert not torch.equal(fresh[name], trained.state_dict()[name]), name
    assert torch.equal(fresh["norm.running_mean"], torch.zeros(8))
    with pytest.raises(ValueError, match=r"backbone=NoReset: its NoReset has weights but no reset_parameters\(\)"):
        random_backbone(CARD, seed=1, backbone=NoReset())


@pytest.mark.parametrize(
    ("target", "out", "message"),
    [
        ("torchvision", "net.pth", "to=torchvision: it has no own/TinyNet; use --to onnx or safetensors"),
        ("timm", "net.pth", "to=timm: timm has no own/TinyNet with stem imagenet; use --to onnx or safetensors"),
        ("huggingface", "net", "to=huggingface: timm has no own/TinyNet with stem imagenet; use --to onnx or safet"),
        ("detectron2", "net", "to=detectron2: it has no own/TinyNet with stem imagenet, only resnet18"),
    ],
)
def test_targets_that_can_not_hold_an_own_backbone_say_so(file: Path, target: str, out: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_run(file, to=target, out=file.with_name(out), backbone=TinyNet())
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_official_layout_can_not_hold_an_own_backbone(
    finished_run: Callable[[str], Path], trained: TinyNet, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_bytes((finished_run("resnet18") / "config.toml").read_bytes())
    save_backbone(tmp_path / "backbone.safetensors", trained, CARD)
    with pytest.raises(
        ValueError, match=r"to=official: main_moco\.py builds torchvision's ResNets, no own/TinyNet with"
    ):
        export_run(tmp_path, to="official", out=tmp_path / "net.pth.tar", backbone=TinyNet())


@pytest.mark.slow
def test_an_own_backbone_goes_to_onnx(file: Path) -> None:
    result = export_run(file, to="onnx", out=file.with_name("net.onnx"), backbone=TinyNet())
    assert max(result.proof.differences.values()) <= 1e-4


def test_an_own_backbone_goes_to_safetensors(file: Path, trained: TinyNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    result = export_run(file, to="safetensors", out="net.safetensors", backbone=TinyNet())
    assert set(result.proof.differences.values()) == {0.0}
    names: dict[str, Any] = {"TinyNet": TinyNet}
    exec(result.exported.usage, names)
    images = torch.randn(2, 3, 32, 32)
    net = names["net"]
    assert torch.equal(net(images), trained.eval()(images)), "the card's lines are true"
