"""ONNX: a graph from normalised images to features, for any batch size and one image size."""

from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor

from mocokit.engine.backbone_file import LoadedBackbone
from mocokit.export.targets import Exported, require_suffix
from mocokit.nets.timm_models import at_image_size

OPSET = 18
"""Oldest opset that torch's exporter writes without conversion; onnxruntime reads it since 1.14."""


def export_onnx(loaded: LoadedBackbone, out: Path) -> Exported:
    """Write `out` (.onnx): `images` (batch, 3, S, S), normalised float32 -> `features` (batch, D)."""
    require_suffix(out, ".onnx")
    card = loaded.card
    images = torch.zeros(2, 3, card.image_size, card.image_size)  # 2: torch.export fixes a batch of 1
    torch.onnx.export(
        at_image_size(loaded.backbone, card.image_size),
        (images,),
        out,
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["features"],
        verbose=False,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    model = onnx.load(out)
    onnx.helper.set_model_props(
        model, {"mean": str(list(card.mean)), "std": str(list(card.std)), "arch": card.arch, "step": str(card.step)}
    )
    onnx.save(model, out)
    onnx.checker.check_model(out, full_check=True)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])

    def read(normalised: Tensor) -> Tensor:
        features: Tensor = torch.from_numpy(session.run(["features"], {"images": normalised.numpy()})[0])
        return features

    return Exported(
        files=(out,),
        readers={f"onnxruntime {onnxruntime.__version__}": read},
        usage=(
            "import onnxruntime\n"
            f'session = onnxruntime.InferenceSession("{out.name}")\n'
            'features = session.run(["features"], {"images": images})[0]  # (N, 3, S, S) float32 array, normalised'
        ),
        notes=(f"opset {OPSET}, any batch size, {card.image_size} px; the batch is the only free dimension",),
    )
