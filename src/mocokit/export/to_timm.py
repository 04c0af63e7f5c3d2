"""timm: a checkpoint that `timm.create_model(..., checkpoint_path=...)` loads."""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from mocokit.engine.backbone_file import LoadedBackbone
from mocokit.export.targets import Exported, require_suffix
from mocokit.nets.timm_models import TimmModel, find_timm


def export_timm(loaded: LoadedBackbone, out: Path) -> Exported:
    """Write `out` (.safetensors or .pth).

    Raises:
        ValueError: timm has no such network; the message names targets that can hold it.

    """
    model = as_timm(loaded, target="timm")
    state = {name: value.contiguous() for name, value in loaded.backbone.state_dict().items()}
    if require_suffix(out, ".safetensors", ".pth") == ".pth":
        torch.save(state, out)
    else:
        save_file(state, out, metadata={"format": "pt"})
    net = timm.create_model(model.name, num_classes=0, checkpoint_path=str(out), **model.arguments)
    arguments = "".join(f", {name}={value}" for name, value in {"num_classes": 0, **model.arguments}.items())
    return Exported(
        files=(out,),
        readers={f"timm {timm.__version__}": net.eval()},
        usage=f'import timm\nnet = timm.create_model("{model.name}"{arguments}, checkpoint_path="{out.name}")',
    )


def as_timm(loaded: LoadedBackbone, *, target: str) -> TimmModel:
    """Return the timm model with the backbone's architecture and parameter names.

    torchvision's ResNets have the same names and parameters in timm.

    Raises:
        ValueError: timm has no such model; the message starts with `to=target`.

    """
    card = loaded.card
    model = find_timm(card.arch) or TimmModel(card.arch, {})
    if card.stem != "imagenet" or not timm.is_model(model.name):
        not_in_torchvision = card.is_own or card.arch.startswith("resnet10")
        others = "onnx or safetensors" if not_in_torchvision else "torchvision, onnx or safetensors"
        raise ValueError(f"to={target}: timm has no {card.arch} with stem {card.stem}; use --to {others}")
    if getattr(loaded.backbone, "dynamic_img_size", False):
        return model._replace(arguments={**model.arguments, "dynamic_img_size": True})
    return model
