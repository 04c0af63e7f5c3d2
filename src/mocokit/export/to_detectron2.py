"""Weights and configs for Detectron2, with proof that its layout computes the same features.

Names are those of moco's own converter (`detection/convert-pretrain-to-detectron2.py`): layer1..4 become res2..5, the
rest `stem`, `bn{n}` becomes `conv{n}.norm`, and `downsample` `shortcut`.
"""

import io
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from mocokit.engine.checkpoint import write_atomically
from mocokit.evaluate.detection_protocols import COCO_C4_2X, COCO_FPN_1X, VOC_C4_24K
from mocokit.export.backbone import BackboneCard, LoadedBackbone
from mocokit.export.detectron2_configs import detectron2_yaml
from mocokit.export.detectron2_reader import detectron2_features, read_detectron2

WEIGHTS_NAME = "backbone.pkl"
MAX_DIFFERENCE = 1e-4
DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152,
          "resnext50_32x4d": 50, "wide_resnet50_2": 50}  # fmt: skip
"""Backbones that Detectron2 builds."""


@dataclass(frozen=True, kw_only=True)
class Detectron2Export:
    """What was written."""

    weights: Path
    configs: tuple[Path, ...]
    max_difference: float
    """See `largest_difference`; measured on the file that was written."""


def export_detectron2(loaded: LoadedBackbone, out: Path) -> Detectron2Export:
    """Write weights, a config for each recipe and the code that the C4 configs need; prove the weights first.

    Args:
        loaded: Backbone to export.
        out: Folder to write into.

    Raises:
        ValueError: Detectron2 has no such backbone, or the features differ by more than MAX_DIFFERENCE.

    """
    backbone, card = loaded.backbone, loaded.card
    if card.arch not in DEPTHS or card.stem != "imagenet" or not isinstance(backbone, ResNet):
        raise ValueError(f"arch={card.arch}, stem={card.stem}: Detectron2 has no such backbone, only {sorted(DEPTHS)}")
    weights = {detectron2_name(name): value.cpu().numpy() for name, value in backbone.state_dict().items()}
    content = {"model": weights, "__author__": "mocokit", "matching_heuristics": True}
    write_atomically(out / WEIGHTS_NAME, lambda temporary: temporary.write_bytes(dump_portable(content)))
    difference = largest_difference(backbone, out / WEIGHTS_NAME)
    if not difference <= MAX_DIFFERENCE:
        (out / WEIGHTS_NAME).unlink()
        raise ValueError(f"arch={card.arch}: Detectron2's layout gives features that differ by {difference:.1e}")
    return Detectron2Export(
        weights=out / WEIGHTS_NAME, configs=_write_configs(card, backbone, out), max_difference=difference
    )


def detectron2_name(name: str) -> str:
    """Detectron2's name of one of torchvision's ResNet parameters."""
    name = name if name.startswith("layer") else f"stem.{name}"
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


class _PortablePickler(pickle.Pickler):
    """Arrays as `numpy.ndarray(shape, type, bytes)`: numpy 2's own pickles can't be read by the numpy 1 of most
    Detectron2 installations.
    """

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            array: NDArray[Any] = np.ascontiguousarray(value).reshape(value.shape)
            return np.ndarray, (array.shape, array.dtype.str, bytearray(array.tobytes()))
        return NotImplemented


def dump_portable(content: Mapping[str, object]) -> bytes:
    """A pickle of plain values and arrays that any numpy reads (protocol 4: Python 3.4 and newer)."""
    buffer = io.BytesIO()
    _PortablePickler(buffer, protocol=4).dump(dict(content))
    return buffer.getvalue()


@torch.no_grad()
def largest_difference(backbone: nn.Module, weights: Path) -> float:
    """Between features of `backbone` and those of the file, in fp32; over the largest feature where that is above 1.

    The images are noise, which reaches every channel.
    """
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    was_training = backbone.training
    device = next(backbone.parameters()).device
    own = backbone.eval()(images.to(device)).cpu()
    backbone.train(was_training)
    difference = (own - detectron2_features(read_detectron2(weights), images)).abs().max()
    return float(difference / own.abs().max().clamp(min=1.0))


def _write_configs(card: BackboneCard, backbone: ResNet, out: Path) -> tuple[Path, ...]:
    """A YAML file a recipe; Detectron2's C4 head is made of bottleneck blocks, so ResNet-18 and 34 get FPN alone."""
    recipes = [COCO_FPN_1X] if isinstance(backbone.layer1[0], BasicBlock) else [VOC_C4_24K, COCO_C4_2X, COCO_FPN_1X]
    paths = tuple(out / f"{recipe.name}.yaml" for recipe in recipes)
    for path, recipe in zip(paths, recipes, strict=True):
        text = detectron2_yaml(
            recipe, depth=DEPTHS[card.arch], block=backbone.layer1[0], mean=card.mean, std=card.std,
            weights=WEIGHTS_NAME,
        )  # fmt: skip
        path.write_text(text, encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("detectron2_train_net.py"), out / "train_net.py")
    return paths
