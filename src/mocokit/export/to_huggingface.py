"""Hugging Face: a folder in timm's hub layout, which timm and transformers load from disk or from the hub."""

import json
from pathlib import Path

import timm
import transformers
from safetensors.torch import save_file
from torch import Tensor

from mocokit.engine.backbone_file import LoadedBackbone
from mocokit.export.targets import Exported, Reader
from mocokit.export.to_timm import as_timm
from mocokit.nets.backbones import feature_dim


def export_huggingface(loaded: LoadedBackbone, out: Path) -> Exported:
    """Make the folder `out` with config.json and model.safetensors.

    Raises:
        ValueError: timm has no such network; the message names targets that can hold it.

    """
    config = _config(loaded)
    out.mkdir(parents=True)
    files = (out / "config.json", out / "model.safetensors")
    files[0].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {name: value.contiguous() for name, value in loaded.backbone.state_dict().items()}
    save_file(state, files[1], metadata={"format": "pt"})
    net = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0)
    return Exported(
        files=files,
        readers={
            f"timm {timm.__version__}": net.eval(),
            f"transformers {transformers.__version__}": _read_with_transformers(out),
        },
        usage=(
            "import timm, transformers\n"
            f'net = timm.create_model("local-dir:{out.name}", pretrained=True, num_classes=0)  # or hf-hub:USER/NAME\n'
            f'model = transformers.AutoModel.from_pretrained("{out.name}")  # features: model(images).pooler_output'
        ),
    )


def _read_with_transformers(folder: Path) -> Reader:
    """Return a reader that loads the folder with transformers."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def read(images: Tensor) -> Tensor:
        features: Tensor = model(pixel_values=images).pooler_output
        return features

    return read


def _config(loaded: LoadedBackbone) -> dict[str, object]:
    """Return the content of timm's config.json: how to build the network and how to prepare its images."""
    card = loaded.card
    model = as_timm(loaded, target="huggingface")
    declared = timm.get_pretrained_cfg(model.name, allow_unregistered=True)
    return {
        "architecture": model.name,
        "num_classes": 0,
        "num_features": feature_dim(loaded.backbone),
        "model_args": model.arguments,
        "pretrained_cfg": {
            "tag": "mocokit",
            "custom_load": False,
            "input_size": [3, card.image_size, card.image_size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": card.eval_crop_ratio,
            "crop_mode": "center",
            "mean": list(card.mean),
            "std": list(card.std),
            "num_classes": 0,
            "first_conv": declared.first_conv if declared else None,
            "classifier": declared.classifier if declared else None,
        },
    }
