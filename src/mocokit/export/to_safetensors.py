"""safetensors: the same file that `pretrain` writes, with the card as its metadata."""

from pathlib import Path

import safetensors

from mocokit.engine.backbone_file import LoadedBackbone, load_backbone, save_backbone
from mocokit.export.targets import Exported, require_suffix


def export_safetensors(loaded: LoadedBackbone, out: Path) -> Exported:
    """Write `out` (.safetensors), which every mocokit command takes in place of a run."""
    require_suffix(out, ".safetensors")
    save_backbone(out, loaded.backbone, loaded.card)
    own = loaded.backbone if loaded.card.is_own else None
    module = f", backbone={type(own).__name__}()" if own else ""
    return Exported(
        files=(out,),
        readers={f"safetensors {safetensors.__version__}": load_backbone(out, backbone=own).backbone},
        usage=f'import mocokit\nnet = mocokit.load_backbone("{out.name}"{module}).backbone',
    )
