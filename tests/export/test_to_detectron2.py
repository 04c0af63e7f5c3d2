"""Names, numbers and configs for Detectron2, read back by code that knows only its format."""

import ast
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mocokit.detection.recipes import VOC_C4_24K
from mocokit.engine.backbone_file import BackboneCard, LoadedBackbone
from mocokit.export.detectron2_reader import detectron2_features, read_detectron2
from mocokit.export.targets import Exported
from mocokit.export.to_detectron2 import detectron2_name, export_detectron2
from mocokit.nets.backbones import build_backbone
from mocokit.nets.pixels import PixelNormalize

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _loaded(arch: str, stem: str = "imagenet") -> LoadedBackbone:
    """Return a backbone with random weights, and BatchNorm statistics far from 0 and 1."""
    backbone = build_backbone(arch, stem=stem)
    generator = torch.Generator().manual_seed(1)
    for name, value in backbone.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            value.uniform_(0.5, 1.5, generator=generator)
            value.mul_(0.2 if name.endswith(("bn2.weight", "bn3.weight")) else 1)  # features of size 1, as trained ones
    card = BackboneCard(arch=arch, stem=stem, image_size=224, eval_crop_ratio=0.875, mean=MEAN, std=STD, step=3)
    return LoadedBackbone(
        backbone=backbone.eval(), pixels=PixelNormalize(MEAN, STD), card=card, path=Path("net.safetensors")
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedBackbone, Exported]:
    torch.manual_seed(0)
    loaded = _loaded("resnet50")
    return loaded, export_detectron2(loaded, tmp_path_factory.mktemp("d2"))


@torch.no_grad()
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_features_read_back_equal_the_backbones(arch: str, tmp_path: Path) -> None:
    loaded = _loaded(arch)
    result = export_detectron2(loaded, tmp_path)
    images = torch.randn(2, 3, 80, 64)
    own = loaded.backbone(images)
    read = detectron2_features(read_detectron2(result.files[0]), images)
    assert read.shape == own.shape
    assert float((own - read).abs().max()) <= 1e-4
    assert 0.01 < float(own.std()) < 10  # neither a comparison of zeros nor of huge features


def test_names_are_those_of_the_official_converter(exported: tuple[LoadedBackbone, Exported]) -> None:
    assert detectron2_name("conv1.weight") == "stem.conv1.weight"
    assert detectron2_name("bn1.running_mean") == "stem.conv1.norm.running_mean"
    assert detectron2_name("layer1.0.conv1.weight") == "res2.0.conv1.weight"
    assert detectron2_name("layer4.2.bn3.bias") == "res5.2.conv3.norm.bias"
    assert detectron2_name("layer2.0.downsample.0.weight") == "res3.0.shortcut.weight"
    assert detectron2_name("layer2.0.downsample.1.running_var") == "res3.0.shortcut.norm.running_var"
    loaded, result = exported
    names = set(read_detectron2(result.files[0]))
    assert len(names) == len(loaded.backbone.state_dict())
    assert {name.split(".")[0] for name in names} == {"stem", "res2", "res3", "res4", "res5"}
    assert not any("fc" in name or "downsample" in name or "bn" in name for name in names)


def test_a_wrong_weight_would_be_noticed(exported: tuple[LoadedBackbone, Exported], tmp_path: Path) -> None:
    weights = read_detectron2(exported[1].files[0])
    images = torch.randn(1, 3, 64, 64)
    right = detectron2_features(weights, images)
    for name in ("stem.conv1.norm.running_mean", "res3.0.shortcut.norm.weight", "res5.2.conv3.norm.bias"):
        wrong = detectron2_features({**weights, name: weights[name] + 0.05}, images)
        assert float((wrong - right).abs().max()) > 1e-3, name


def test_an_ordinary_pickle_load_gives_writable_arrays_of_any_numpy(
    exported: tuple[LoadedBackbone, Exported],
) -> None:
    raw = exported[1].files[0].read_bytes()
    content: dict[str, Any] = pickle.loads(raw)  # as Detectron2 does
    assert content["matching_heuristics"] is True
    assert content["__author__"] == "mocokit"
    assert all(type(array) is np.ndarray and array.flags.writeable for array in content["model"].values())
    assert b"numpy._core" not in raw and b"numpy.core" not in raw  # numpy 1 knows no numpy._core, numpy 2 no numpy.core


class _Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("1/0",)


def test_the_reader_takes_numpys_own_pickles_but_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    arrays = {"stem.conv1.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(5)}
    path.write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True}))  # the official converter's way
    read = read_detectron2(path)
    assert read["stem.conv1.weight"].tolist() == [[0, 1, 2], [3, 4, 5]] and int(read["n"]) == 5
    path.write_bytes(pickle.dumps({"model": {"x": _Harmful()}, "matching_heuristics": True}))
    with pytest.raises(ValueError, match=r"it asks for builtins\.eval, which no weight file needs"):
        read_detectron2(path)
    path.write_bytes(pickle.dumps({"model": arrays}))
    with pytest.raises(ValueError, match="matching_heuristics is not set"):
        read_detectron2(path)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="no model in it"):
        read_detectron2(path)
    path.write_bytes(b"\x80\x04cut")
    with pytest.raises(ValueError, match="not a Detectron2 weight file"):
        read_detectron2(path)


def test_configs_hold_the_numbers_of_the_recipes(exported: tuple[LoadedBackbone, Exported]) -> None:
    yaml = pytest.importorskip("yaml")
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in exported[1].files if path.suffix == ".yaml"}
    assert set(configs) == {"voc-c4-24k", "coco-c4-2x", "coco-fpn-1x"}
    voc = configs["voc-c4-24k"]
    c4 = configs["coco-c4-2x"]
    fpn = configs["coco-fpn-1x"]
    assert voc["SOLVER"]["MAX_ITER"] == 24_000 and voc["SOLVER"]["STEPS"] == [18_000, 22_000]
    assert voc["SOLVER"]["WARMUP_ITERS"] == 100 and voc["SOLVER"]["IMS_PER_BATCH"] == 16
    assert voc["INPUT"]["MIN_SIZE_TRAIN"] == list(VOC_C4_24K.train_short_sides_px)
    assert voc["INPUT"]["FORMAT"] == "RGB"
    assert voc["MODEL"]["ROI_HEADS"]["NAME"] == "Res5ROIHeadsExtraNorm"
    assert voc["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 20 and voc["MODEL"]["MASK_ON"] is False
    assert voc["DATASETS"] == {"TRAIN": ["voc_2007_trainval", "voc_2012_trainval"], "TEST": ["voc_2007_test"]}
    for config in configs.values():
        assert config["MODEL"]["BACKBONE"]["FREEZE_AT"] == 0
        assert config["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is False
        assert config["MODEL"]["PIXEL_MEAN"] == [123.675, 116.28, 103.53]
        assert config["MODEL"]["PIXEL_STD"] == [58.395, 57.12, 57.375]
        assert config["TEST"]["PRECISE_BN"] == {"ENABLED": True, "NUM_ITER": 200}
        assert config["MODEL"]["WEIGHTS"] == exported[1].files[0].name
    assert c4["SOLVER"]["MAX_ITER"] == 180_000 and c4["MODEL"]["MASK_ON"] is True
    assert fpn["SOLVER"]["STEPS"] == [60_000, 80_000]
    assert fpn["MODEL"]["FPN"]["NORM"] == fpn["MODEL"]["RESNETS"]["NORM"] == "naiveSyncBN"
    assert "NORM" not in fpn["MODEL"]["ROI_BOX_HEAD"]
    assert fpn["MODEL"]["ANCHOR_GENERATOR"]["SIZES"] == [[32], [64], [128], [256], [512]]


def test_basic_blocks_get_only_the_fpn_config_and_unknown_backbones_are_refused(tmp_path: Path) -> None:
    result = export_detectron2(_loaded("resnet18"), tmp_path)
    assert [path.name for path in result.files] == ["backbone.pkl", "coco-fpn-1x.yaml", "train_net.py"]
    assert "RES2_OUT_CHANNELS: 64" in result.files[1].read_text()
    for arch, stem in (("resnet10_w16", "imagenet"), ("resnet18", "small")):
        with pytest.raises(ValueError, match=f"to=detectron2: it has no {arch} with stem {stem}, only resnet18"):
            export_detectron2(_loaded(arch, stem), tmp_path / arch / stem)


def test_the_training_program_needs_detectron2_alone(exported: tuple[LoadedBackbone, Exported]) -> None:
    tree = ast.parse((exported[1].files[0].parent / "train_net.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert {module.split(".")[0] for module in modules} == {"typing", "detectron2"}
    assert "Res5ROIHeadsExtraNorm" in {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
