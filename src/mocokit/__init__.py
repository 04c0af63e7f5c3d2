"""mocokit: momentum-contrast visual pre-training that anyone can run and trust.

Public names load on first use, so that importing the package (and `mocokit --help`) does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Config": "mocokit.config.schema",
    "EndToEnd": "mocokit.methods.end_to_end",
    "GroupLayout": "mocokit.methods.groups",
    "Encoder": "mocokit.nets.encoder",
    "MemoryBank": "mocokit.methods.memory_bank",
    "MoCo": "mocokit.methods.moco",
    "export_run": "mocokit.run.export",
    "import_backbone": "mocokit.foreign.import_backbone",
    "MoCoV3": "mocokit.methods.moco_v3",
    "SimClr": "mocokit.methods.simclr",
    "ViewBatch": "mocokit.data.batch",
    "ImageSource": "mocokit.data.sources.sources",
    "ImageList": "mocokit.data.sources.objects",
    "Method": "mocokit.methods.contract",
    "MethodSettings": "mocokit.methods.contract",
    "MethodSpec": "mocokit.methods.contract",
    "declare_feature_dim": "mocokit.nets.backbones",
    "build_backbone": "mocokit.nets.backbones",
    "build_head": "mocokit.nets.heads",
    "get_preset": "mocokit.config.presets",
    "info_nce": "mocokit.losses",
    "load_backbone": "mocokit.engine.backbone_file",
    "pretrain": "mocokit.run.pretrain",
    "resume": "mocokit.run.pretrain",
    "verify": "mocokit.run.verify",
}

__all__ = [
    "Config",
    "Encoder",
    "EndToEnd",
    "GroupLayout",
    "ImageList",
    "ImageSource",
    "MemoryBank",
    "Method",
    "MethodSettings",
    "MethodSpec",
    "MoCo",
    "MoCoV3",
    "SimClr",
    "ViewBatch",
    "build_backbone",
    "build_head",
    "declare_feature_dim",
    "export_run",
    "get_preset",
    "import_backbone",
    "info_nce",
    "load_backbone",
    "pretrain",
    "resume",
    "verify",
]

if TYPE_CHECKING:
    from mocokit.config.presets import get_preset
    from mocokit.config.schema import Config
    from mocokit.data.batch import ViewBatch
    from mocokit.data.sources.objects import ImageList
    from mocokit.data.sources.sources import ImageSource
    from mocokit.engine.backbone_file import load_backbone
    from mocokit.foreign.import_backbone import import_backbone
    from mocokit.losses import info_nce
    from mocokit.methods.contract import Method, MethodSettings, MethodSpec
    from mocokit.methods.end_to_end import EndToEnd
    from mocokit.methods.groups import GroupLayout
    from mocokit.methods.memory_bank import MemoryBank
    from mocokit.methods.moco import MoCo
    from mocokit.methods.moco_v3 import MoCoV3
    from mocokit.methods.simclr import SimClr
    from mocokit.nets.backbones import build_backbone, declare_feature_dim
    from mocokit.nets.encoder import Encoder
    from mocokit.nets.heads import build_head
    from mocokit.run.export import export_run
    from mocokit.run.pretrain import pretrain, resume
    from mocokit.run.verify import verify


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mocokit' has no attribute {name!r}; it has {sorted(_PUBLIC)}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
