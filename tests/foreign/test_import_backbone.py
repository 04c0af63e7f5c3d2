"""Imported weights are the network's, or the import says why not. Each project's own: test_foreign_projects.py."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

import mocokit
from mocokit.cli import main
from mocokit.foreign.evidence import Hints
from mocokit.foreign.find_backbone import find_backbone
from mocokit.foreign.import_backbone import import_backbone

State = dict[str, Tensor]


def _resnet(arch: str = "resnet18", head: nn.Module | None = None) -> nn.Module:
    """Return a torchvision ResNet with BatchNorm statistics far from 0 and 1."""
    net: nn.Module = getattr(models, arch)()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    net.fc = head or nn.Identity()
    return net.eval()


def _vit(name: str, *, num_classes: int = 0, num_heads: int | None = None) -> nn.Module:
    extra: dict[str, Any] = {} if num_heads is None else {"num_heads": num_heads}
    net: nn.Module = timm.create_model(name, num_classes=num_classes, dynamic_img_size=True, **extra)
    nn.init.normal_(net.get_parameter("pos_embed"), std=0.3)
    return net.eval()


def _with(prefix: str, net: nn.Module) -> State:
    return {prefix + name: value for name, value in net.state_dict().items()}


MLP = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
MOMENTUM = {"queue": torch.zeros(128, 40), "queue_ptr": torch.zeros(1, dtype=torch.long)}


def _official(net: nn.Module) -> dict[str, Any]:
    state = {**MOMENTUM, **_with("encoder_q.", net), **_with("encoder_q.fc.", MLP), **_with("encoder_k.", net)}
    return {"epoch": 200, "arch": "resnet18", "state_dict": {f"module.{name}": v for name, v in state.items()}}


def _v3(net: nn.Module) -> dict[str, Any]:
    head = "fc" if isinstance(net, models.ResNet) else "head"
    state = {
        **_with("base_encoder.", net),
        **_with(f"base_encoder.{head}.", MLP),
        **_with("momentum_encoder.", net),
        **_with("predictor.", MLP),
    }
    return {"epoch": 300, "arch": "x", "state_dict": {f"module.{name}": value for name, value in state.items()}}


def _lightly(net: nn.Module) -> dict[str, Any]:
    backbone = nn.Sequential(*list(net.children())[:-1])
    state = {**_with("backbone.", backbone), **_with("backbone_momentum.", backbone), **_with("projection_head.", MLP)}
    return {"state_dict": state, "pytorch-lightning_version": "2.4.0", "hyper_parameters": {"lr": 0.06}}


def _lightly_named(net: nn.Module) -> dict[str, Any]:
    return {
        "state_dict": {**_with("backbone.", net), **_with("query_projection_head.", MLP), **_with("key_backbone.", net)}
    }


def _solo(net: nn.Module) -> dict[str, Any]:
    state = {
        **_with("backbone.", net),
        **_with("momentum_backbone.", net),
        **_with("projector.", MLP),
        **MOMENTUM,
        **_with("momentum_projector.", MLP),
        **_with("classifier.", nn.Linear(512, 100)),
    }
    return {"state_dict": state, "epoch": 399}


def _dino(net: nn.Module) -> dict[str, Any]:
    other = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    teacher = {**_with("backbone.", net), **_with("head.mlp.", MLP)}
    student = {f"module.backbone.{name}": value for name, value in other.items()}
    return {"teacher": teacher, "student": student, "args": argparse.Namespace(arch="vit_small", lr=0.0005), "epoch": 1}


def _plain(net: nn.Module) -> dict[str, Any]:
    return dict(net.state_dict())


def _check(net: nn.Module, out: Path, size_px: int = 64) -> None:
    images = torch.randn(2, 3, size_px, size_px)
    with torch.no_grad():
        want = net(images).flatten(1)
        assert want.std() > 1e-3
        assert torch.equal(mocokit.load_backbone(out).backbone(images), want)


def test_lightlys_named_backbone_is_known_too(tmp_path: Path) -> None:
    net = _resnet()
    torch.save(_lightly_named(net), tmp_path / "theirs.ckpt")
    assert import_backbone(tmp_path / "theirs.ckpt", tmp_path / "ours.safetensors").layout == "lightly"
    _check(net, tmp_path / "ours.safetensors")


def test_the_small_stem_is_inferred_from_its_kernel_but_not_its_padding(tmp_path: Path) -> None:
    net = _resnet()
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    torch.save(_lightly(net), tmp_path / "theirs.ckpt")
    with pytest.raises(ValueError, match=r"theirs.ckpt: its first convolution is 3x3, and neither .* say --padding 2"):
        import_backbone(tmp_path / "theirs.ckpt", tmp_path / "ours.safetensors")
    card = import_backbone(tmp_path / "theirs.ckpt", tmp_path / "ours.safetensors", padding=1).card
    assert (card.arch, card.stem, card.image_size, card.eval_crop_ratio) == ("resnet18", "small", 32, 1.0)
    _check(net, tmp_path / "ours.safetensors", size_px=32)


def test_lightlys_own_resnet_without_relu_is_refused(tmp_path: Path) -> None:
    """Its shapes are those of resnet18 with the small stem, but its features differ."""
    names = ("0.weight", "1.weight", "2.0.conv1.weight", "3.0.conv1.weight", "3.0.bn1.bias")
    keys = {f"backbone.{name}": torch.zeros(1) for name in names}
    torch.save({"state_dict": {**keys, **_with("projection_head.", MLP)}}, tmp_path / "theirs.ckpt")
    with pytest.raises(ValueError, match="has no ReLU after its first BatchNorm"):
        import_backbone(tmp_path / "theirs.ckpt", tmp_path / "ours.safetensors")


@pytest.mark.parametrize(
    ("layout", "name", "num_heads", "arch"),
    [
        (_v3, "vit_small_patch16_224", 12, "vit_small_patch16_224_h12"),
        (_dino, "vit_small_patch16_224", None, "vit_small_patch16_224"),
        (_dino, "vit_small_patch8_224", None, "timm/vit_small_patch8_224"),
        (_plain, "vit_tiny_patch16_224", None, "vit_tiny_patch16_224"),
    ],
)
def test_vision_transformers_are_told_apart(
    layout: Callable[[nn.Module], dict[str, Any]], name: str, num_heads: int | None, arch: str, tmp_path: Path
) -> None:
    """MoCo v3's ViT-S has 12 heads where others have 6: the shapes are equal, the features differ."""
    net = _vit(name, num_heads=num_heads)
    torch.save(layout(net), tmp_path / "theirs.pth")
    assert import_backbone(tmp_path / "theirs.pth", tmp_path / "ours.safetensors").card.arch == arch
    _check(net, tmp_path / "ours.safetensors")


@pytest.mark.slow
def test_torchvisions_vit_is_timms(tmp_path: Path) -> None:
    net = models.vit_b_16().eval()
    net.heads = nn.Identity()
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, tmp_path / "vit.safetensors")
    card = import_backbone(tmp_path / "vit.safetensors", tmp_path / "ours.safetensors").card
    assert card.arch == "vit_base_patch16_224"
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours = mocokit.load_backbone(tmp_path / "ours.safetensors").backbone(images)
        assert torch.allclose(ours, net(images), atol=1e-5)


@pytest.mark.parametrize(
    "arch", ["resnet34", "resnet50", pytest.param("wide_resnet50_2", marks=pytest.mark.slow), "resnext50_32x4d"]
)
def test_the_architecture_is_inferred_from_shapes(arch: str, tmp_path: Path) -> None:
    torch.save(_resnet(arch).state_dict(), tmp_path / "theirs.pth")
    assert import_backbone(tmp_path / "theirs.pth", tmp_path / "ours.safetensors").card.arch == arch


def test_the_command_prints_the_parts_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(_solo(_resnet()), tmp_path / "theirs.ckpt")
    out = tmp_path / "ours.safetensors"
    assert main(["import", str(tmp_path / "theirs.ckpt"), str(out), "--image-size", "96"]) == 0
    printed = capsys.readouterr().out
    assert f"solo-learn: resnet18, stem imagenet, 96 px -> {out}" in printed
    for line in (
        "projector (4 tensors)",
        "queue (1 tensors)",
        "classifier (2 tensors)",
        "momentum_backbone (120 tensors)",
    ):
        assert f"left out: {line}" in printed
    assert main(["knn", str(out), "--data", "/nowhere"]) == 1, "it is a backbone that commands take"
    assert "data=/nowhere" in capsys.readouterr().err


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    content = {**_plain(_resnet()), "surprise": _Evil(tmp_path / "was_here")}
    torch.save(content, tmp_path / "theirs.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"theirs.pth: refused: loading it would run posix.system, and mocokit runs no"
    ):
        import_backbone(tmp_path / "theirs.pth", tmp_path / "ours.safetensors")
    assert not (tmp_path / "was_here").exists()
    assert not (tmp_path / "ours.safetensors").exists()


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs.pth").write_bytes(pickle.dumps({"x": _Evil(tmp_path / "was_here")}))
    with pytest.raises(ValueError, match=r"theirs.pth: refused: "):
        import_backbone(tmp_path / "theirs.pth", tmp_path / "ours.safetensors")
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 200, 0.5, 0.999])
def test_a_truncated_file_says_so(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"theirs{suffix}"
    save: Any = torch.save if suffix == ".pth" else save_file
    save(_plain(_resnet()), path)
    raw = path.read_bytes()
    path.write_bytes(raw[: keep if isinstance(keep, int) else int(len(raw) * keep)])
    with pytest.raises(ValueError, match=r"theirs\.\w+: cut, damaged, or not a checkpoint \("):
        import_backbone(path, tmp_path / "ours.safetensors")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda s: s | {"extra.weight": torch.zeros(1)}, {}, r"nearest is resnet18: unknown keys: extra.weight"),
        (lambda s: {k: v for k, v in s.items() if k != "bn1.bias"}, {}, r"nearest is resnet18: missing: bn1.bias"),
        (
            lambda s: s | {"layer1.0.conv1.weight": torch.zeros(64, 64, 5, 5)},
            {},
            r"other shapes: layer1.0.conv1.weight \(64, 64, 5, 5\), not \(64, 64, 3, 3\)",
        ),
        (
            lambda s: s,
            {"arch": "resnet50"},
            r"arch=resnet50: the weights are not of this backbone; missing: ",
        ),
        (lambda s: s, {"arch": "resnet99"}, r"model.arch='resnet99': unknown"),
        (lambda s: {"epoch": 3, "args": {"lr": 1}}, {}, r"holds no weights; its keys are epoch, args"),
        (lambda s: {"classy_state_dict": {"base_model": 3}}, {}, r"holds no weights; its keys are classy_state_dict"),
        (lambda s: {"optimizer": {"state": {0: s}}}, {}, r"holds no weights; its keys are optimizer"),
        (lambda s: s | {"bn1.bias": s["bn1.bias"] * torch.nan}, {}, r"bn1.bias has values that are NaN or infinite"),
        (lambda s: s | {"bn1.weight": s["bn1.weight"] / 0}, {}, r"bn1.weight has values that are NaN or infinite"),
        (lambda s: s | {"bn1.weight": torch.ones(64).to(torch.int8)}, {}, r"bn1.weight holds torch.int8, not float"),
        (lambda s: s | {"bn1.weight": torch.ones(1).expand(64)}, {}, r"tensors share their memory"),
        (lambda s: s, {"prefix": "student."}, r"prefix=student.: no network begins there; there are ''"),
        (lambda s: s, {"heads": 3}, r"heads=3: only a ViT has heads"),
        (lambda s: s, {"padding": 2}, r"padding=2: only a 3x3 first convolution"),
        (lambda s: {11: torch.zeros(1), "args": 1}, {}, r"nearest is \w+: unknown keys: 11; missing: "),
        (lambda s: {"step": 3, "method": s}, {}, r"mocokit wrote this checkpoint; use its run folder"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_difference(
    change: Callable[[State], State], arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.save(change(_plain(_resnet())), tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match=rf"checkpoint=.*theirs.pth: .*{message}"):
        import_backbone(tmp_path / "theirs.pth", tmp_path / "ours.safetensors", **arguments)


def test_parts_beside_the_backbone_are_told_and_parts_inside_are_ignored_on_request_alone(tmp_path: Path) -> None:
    checkpoint = _official(_resnet())
    checkpoint["state_dict"]["module.mystery.bias"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "theirs.pth")
    assert import_backbone(tmp_path / "theirs.pth", tmp_path / "a.safetensors").left_out["mystery"] == 1
    checkpoint["state_dict"]["module.encoder_q.mystery.bias"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "theirs.pth")
    with pytest.raises(
        ValueError, match=r"at state_dict.encoder_q.: .* resnet18: unknown keys: mystery.bias; other netw"
    ):
        import_backbone(tmp_path / "theirs.pth", tmp_path / "b.safetensors")
    import_backbone(tmp_path / "theirs.pth", tmp_path / "b.safetensors", ignore=["*.mystery.*"])


def test_a_prefix_chooses_another_network(tmp_path: Path) -> None:
    query = _resnet()
    key = _resnet()
    state = {**_with("encoder_q.", query), **_with("encoder_k.", key)}
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "theirs.pth")
    found = import_backbone(tmp_path / "theirs.pth", tmp_path / "q.safetensors")
    assert (found.path, found.others) == ("state_dict.encoder_q.", ("state_dict.encoder_k.",))
    import_backbone(tmp_path / "theirs.pth", tmp_path / "k.safetensors", prefix="module.encoder_k.")
    _check(key, tmp_path / "k.safetensors")
    _check(query, tmp_path / "q.safetensors")
    for prefix in ("encoder_k", "encoder_k.", "state_dict.encoder_k"):
        assert find_backbone({"state_dict": state}, Hints(prefix=prefix)).path == "state_dict.encoder_k."


def test_networks_that_are_as_good_are_asked_for(tmp_path: Path) -> None:
    torch.save({**_with("rgb.", _resnet()), **_with("depth.", _resnet())}, tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match=r"several networks fit \(rgb., depth.\); choose one by --prefix depth."):
        import_backbone(tmp_path / "theirs.pth", tmp_path / "ours.safetensors")
    import_backbone(tmp_path / "theirs.pth", tmp_path / "ours.safetensors", prefix="depth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_git_lfs_pointer_says_what_it_is(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"theirs{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 94000000\n")
    with pytest.raises(ValueError, match=r"checkpoint=.*: a git-lfs pointer, not the weights .* git lfs pull"):
        import_backbone(path, tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match=r"run=.*: a git-lfs pointer"):
        mocokit.load_backbone(path)


def test_the_heads_are_checked_against_the_width(tmp_path: Path) -> None:
    torch.save(_vit("vit_tiny_patch16_224").state_dict(), tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match=r"heads=7: does not divide the width of 192 \(given\)"):
        import_backbone(tmp_path / "theirs.pth", tmp_path / "ours.safetensors", heads=7)
