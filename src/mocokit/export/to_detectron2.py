"""Detectron2: weights under its names, and a config for each recipe.

Names are those of moco's own converter (`detection/convert-pretrain-to-detectron2.py`): layer1..4 become res2..5,
other layers go below `stem`, `bn{n}` becomes `conv{n}.norm`, and `downsample` becomes `shortcut`.
"""

import io
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.models.resnet import BasicBlock, ResNet

from mocokit.detection.recipes import COCO_C4_2X, COCO_FPN_1X, VOC_C4_24K
from mocokit.engine.backbone_file import BackboneCard, LoadedBackbone
from mocokit.export.detectron2_configs import detectron2_yaml
from mocokit.export.detectron2_reader import detectron2_features, read_detectron2
from mocokit.export.targets import Exported

WEIGHTS_NAME = "backbone.pkl"
DEPTHS = {
    "resnet18": 18,
    "resnet34": 34,
    "resnet50": 50,
    "resnet101": 101,
    "resnet152": 152,
    "resnext50_32x4d": 50,
    "wide_resnet50_2": 50,
}
"""Backbones that Detectron2 can build -> number of layers."""


def export_detectron2(loaded: LoadedBackbone, out: Path) -> Exported:
    """Write a folder with weights, a config for each recipe, and a training program with the head of the C4 configs.

    Raises:
        ValueError: Detectron2 has no such backbone.

    """
    backbone = loaded.backbone
    card = loaded.card
    if card.arch not in DEPTHS or card.stem != "imagenet" or not isinstance(backbone, ResNet):
        raise ValueError(f"to=detectron2: it has no {card.arch} with stem {card.stem}, only {', '.join(DEPTHS)}")
    out.mkdir(parents=True, exist_ok=True)
    arrays = {detectron2_name(name): value.cpu().numpy() for name, value in backbone.state_dict().items()}
    content = {"model": arrays, "__author__": "mocokit", "matching_heuristics": True}
    (out / WEIGHTS_NAME).write_bytes(dump_portable(content))
    configs = _write_configs(card, backbone, out)
    script = out / "train_net.py"
    shutil.copyfile(Path(__file__).with_name("detectron2_train_net.py"), script)
    weights = read_detectron2(out / WEIGHTS_NAME)
    return Exported(
        files=(out / WEIGHTS_NAME, *configs, script),
        readers={"Detectron2's names, read without it": lambda images: detectron2_features(weights, images)},
        usage=f"python {script.name} --config-file {configs[0].name} --num-gpus 8",
    )


def detectron2_name(name: str) -> str:
    """Return Detectron2's name of a parameter or buffer of torchvision's ResNet."""
    name = name if name.startswith("layer") else f"stem.{name}"
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


class _PortablePickler(pickle.Pickler):
    """Pickler that writes arrays as `numpy.ndarray(shape, type, bytes)`.

    numpy 2's own pickles name numpy._core, which the numpy 1 of most Detectron2 installations does not have.
    """

    def reducer_override(self, value: Any) -> Any:
        """Return how to rebuild an array; leave other values to pickle."""
        if isinstance(value, np.ndarray):
            array: NDArray[Any] = np.ascontiguousarray(value).reshape(value.shape)
            return np.ndarray, (array.shape, array.dtype.str, bytearray(array.tobytes()))
        return NotImplemented


def dump_portable(content: Mapping[str, object]) -> bytes:
    """Return a pickle of plain values and arrays that numpy 1 and 2 read (protocol 4: Python 3.4 and newer)."""
    buffer = io.BytesIO()
    _PortablePickler(buffer, protocol=4).dump(dict(content))
    return buffer.getvalue()


def _write_configs(card: BackboneCard, backbone: ResNet, out: Path) -> tuple[Path, ...]:
    """Write a YAML file for each recipe that fits the backbone; return their paths.

    Detectron2's C4 head is made of bottleneck blocks, so ResNet-18 and 34 get only the FPN recipe.
    """
    recipes = [COCO_FPN_1X] if isinstance(backbone.layer1[0], BasicBlock) else [VOC_C4_24K, COCO_C4_2X, COCO_FPN_1X]
    paths = tuple(out / f"{recipe.name}.yaml" for recipe in recipes)
    for path, recipe in zip(paths, recipes, strict=True):
        text = detectron2_yaml(
            recipe,
            depth=DEPTHS[card.arch],
            block=backbone.layer1[0],
            mean=card.mean,
            std=card.std,
            weights=WEIGHTS_NAME,
        )
        path.write_text(text, encoding="utf-8")
    return paths
