"""Each target is read by its own library: ResNet-18, ResNet-50 and a ViT, trained for a few steps."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision import models
from transformers import AutoImageProcessor

import mocokit
from mocokit.engine.backbone_file import BackboneCard, save_backbone
from mocokit.export.targets import TARGETS, load_target
from mocokit.nets.backbones import build_backbone
from mocokit.run.export import ExportResult, export_run

FinishedRun = Callable[[str], Path]

CARD = BackboneCard(
    arch="", stem="imagenet", image_size=48, eval_crop_ratio=1.0, mean=(0.5,) * 3, std=(0.25,) * 3, step=0
)

NAMES = {
    "torchvision": "net.pth",
    "timm": "net.safetensors",
    "detectron2": "net",
    "huggingface": "net",
    "onnx": "net.onnx",
    "safetensors": "net.safetensors",
    "official": "checkpoint_0000.pth.tar",
}
VIT_TARGETS = ("timm", "huggingface", "onnx", "safetensors")
CASES = [
    # torch's ONNX exporter takes 10 s, ResNet-50 some seconds with each target
    pytest.param(arch, target, marks=pytest.mark.slow if target == "onnx" or arch == "resnet50" else ())
    for arch, targets in (("resnet18", NAMES), ("resnet50", NAMES), ("vit_tiny_patch16_224", VIT_TARGETS))
    for target in targets
]


Exports = Callable[[str, str], ExportResult]


@pytest.fixture(scope="module")
def exports(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Return a function that makes an export once: exports("resnet18", "onnx")."""

    @cache
    def make(arch: str, target: str) -> ExportResult:
        out = tmp_path_factory.mktemp(f"{arch}_{target}") / NAMES[target]
        return export_run(finished_run(arch), to=target, out=out)

    return make


def _features(usage: str, images: Tensor) -> Tensor:
    """Return the features that a user gets from the lines of the card."""
    names: dict[str, Any] = {"images": images.numpy()}
    exec(usage, names)
    if "features" in names:
        return torch.from_numpy(names["features"])
    with torch.no_grad():
        features: Tensor = names["net"].eval()(images)
    return features


@pytest.mark.parametrize(("arch", "target"), CASES)
def test_the_library_computes_the_same_features(
    finished_run: FinishedRun, exports: Exports, arch: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = exports(arch, target)
    assert result.proof.differences
    assert max(result.proof.differences.values()) <= 1e-4
    assert all(file.is_file() for file in (*result.exported.files, *result.card_files))
    if target in ("official", "detectron2"):
        return  # a shell command; tests/foreign/test_import_run.py and test_to_detectron2.py read the files back
    monkeypatch.chdir(
        result.exported.files[0].parent.parent if target == "huggingface" else result.exported.files[0].parent
    )
    images = torch.randn(7, 3, 32, 32)
    with torch.no_grad():
        ours = mocokit.load_backbone(finished_run(arch)).backbone(images)
    assert ours.std() > 0.01
    assert torch.allclose(_features(result.exported.usage, images), ours, atol=1e-4), "the card's lines are true"


@pytest.mark.slow
def test_a_vit_base_becomes_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = build_backbone("vit_base_patch16_224").eval()
    torch.nn.init.normal_(net.get_parameter("pos_embed"), std=0.5)  # so that a wrong resampling would show
    save_backbone(tmp_path / "vit.safetensors", net, replace(CARD, arch="vit_base_patch16_224"))
    result = export_run(tmp_path / "vit.safetensors", to="torchvision", out=tmp_path / "vit_b_16.pth")
    assert max(result.proof.differences.values()) <= 1e-4
    monkeypatch.chdir(tmp_path)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.allclose(_features(result.exported.usage, images), net(images), rtol=0, atol=1e-4)
    assert "vit_b_16" in result.exported.usage


def test_torchvision_misses_nothing_but_fc(exports: Exports) -> None:
    state = torch.load(exports("resnet18", "torchvision").exported.files[0], weights_only=True)
    missing, unexpected = models.resnet18().load_state_dict(state, strict=False)
    assert (sorted(missing), unexpected) == (["fc.bias", "fc.weight"], [])


@pytest.mark.parametrize("stem", ["small", "small_pad2"])
def test_the_small_stems_go_to_torchvision_and_not_to_timm(
    stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build_backbone("resnet18", stem=stem).eval()
    save_backbone(tmp_path / "small.safetensors", net, replace(CARD, arch="resnet18", stem=stem))
    monkeypatch.chdir(tmp_path)
    result = export_run("small.safetensors", to="torchvision", out="net.pth")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(_features(result.exported.usage, images), net(images))
    with pytest.raises(
        ValueError, match=rf"to=timm: timm has no resnet18 with stem {stem}; use --to torchvision, onnx"
    ):
        export_run("small.safetensors", to="timm", out="net.safetensors")
    assert not Path("net.safetensors").exists()


def test_onnx_takes_any_batch_and_says_how_to_normalise(finished_run: FinishedRun, exports: Exports) -> None:
    run = finished_run("resnet18")
    file = exports("resnet18", "onnx").exported.files[0]
    model = onnx.load(file)
    assert [(entry.domain, entry.version) for entry in model.opset_import if not entry.domain] == [("", 18)]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    loaded = mocokit.load_backbone(run)
    for batch in (1, 2, 5, 11):
        images = torch.randn(batch, 3, 32, 32)
        (features,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            assert np.abs(features - loaded.backbone(images).numpy()).max() <= 1e-4
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["mean"]) == pytest.approx(loaded.card.mean)
    assert json.loads(metadata["std"]) == pytest.approx(loaded.card.std)


def test_hugging_face_reads_size_crop_and_mean(finished_run: FinishedRun, exports: Exports) -> None:
    folder = exports("vit_tiny_patch16_224", "huggingface").exported.files[0].parent
    told = AutoImageProcessor.from_pretrained(folder, local_files_only=True).data_config  # type: ignore[no-untyped-call]
    card = mocokit.load_backbone(finished_run("vit_tiny_patch16_224")).card
    assert (told["input_size"], told["crop_pct"]) == ((3, 32, 32), card.eval_crop_ratio)
    assert told["mean"] == pytest.approx(card.mean)
    state = load_file(folder / "model.safetensors")
    assert state["pos_embed"].shape == (1, 197, 192), "as timm has it, for any image size"
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: timm\n")


@pytest.mark.parametrize(
    ("arch", "target", "out", "message"),
    [
        ("vit_tiny_patch16_224", "torchvision", "net.pth", "it has no vit_tiny_patch16_224; use --to timm, hugging"),
        ("vit_tiny_patch16_224", "official", "net.tar", "main_moco.py builds torchvision's ResNets"),
        ("resnet18", "onnx", "net.pth", r"out=.*net.pth: must end in .onnx"),
        ("resnet18", "timm", "net.bin", r"must end in .safetensors or .pth"),
        ("resnet18", "tensorflow", "net", r"to='tensorflow': unknown; choose one of \['torchvision', 'timm'"),
    ],
)
def test_a_backbone_that_a_target_can_not_hold_is_an_error_with_a_remedy(
    finished_run: FinishedRun, arch: str, target: str, out: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_run(finished_run(arch), to=target, out=tmp_path / out)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "mocokit.export.to_onnx", raising=False)
    with pytest.raises(ValueError, match=r"to=onnx: needs onnx; pip install 'mocokit\[export\]'"):
        load_target("onnx")


def test_every_target_loads() -> None:
    assert all(callable(load_target(name)) for name in TARGETS)
