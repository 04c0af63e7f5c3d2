"""Checkpoints as other projects write them, each with the network that computes its features.

lightly, pytorch-lightning, timm and torchvision build the real models. The other projects can't be installed beside
these, so their modules are put together here with the names that their public source gives them (facts of the source,
none of its code).
"""

import copy
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint's content, and the network whose features the imported backbone must give."""

    content: Any
    net: Callable[[Tensor], Tensor]
    image_size: int = 64
    flags: dict[str, Any] = field(default_factory=dict)
    """Arguments of `import_backbone`, for what the file does not tell."""
    classes: dict[str, tuple[type, ...]] = field(default_factory=dict)
    """Module -> classes of objects in the content; they can be imported while the file is written, never afterwards."""
    suffix: str = ".pth"
    old_format: bool = False
    """True for a file of torch before 1.6."""

    def save(self, folder: Path) -> Path:
        """Write the checkpoint into `folder`; return its path."""
        path = folder / f"theirs{self.suffix}"
        if self.suffix == ".safetensors":
            save_file({name: value.contiguous() for name, value in self.content.items()}, path)
            return path
        with ExitStack() as stack:
            for module, classes in self.classes.items():
                stack.enter_context(fake_module(module, *classes))
            torch.save(self.content, path, _use_new_zipfile_serialization=not self.old_format)
        return path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    project: str
    method: str
    file: str
    build: Callable[[], Checkpoint]
    refused: str = ""
    """Part of the error, for a checkpoint that is refused."""


MLP = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 16))


def resnet(*, stem: str = "imagenet", padding: int = 1, arch: str = "resnet18") -> nn.Module:
    """Return a torchvision ResNet without classifier, with BatchNorm statistics far from 0 and 1."""
    net: nn.Module = getattr(models, arch)()
    if stem == "small":
        net.conv1 = nn.Conv2d(3, 64, 3, padding=padding, bias=False)
        net.maxpool = nn.Identity()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    net.fc = nn.Identity()
    return net.eval()


def vit(name: str = "vit_tiny_patch16_224", **options: Any) -> Any:
    """Return a timm ViT of two blocks for 64 px, with weights far from their initialisation."""
    net = timm.create_model(name, num_classes=0, **{"depth": 2, "img_size": 64, **options})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net.eval()


def different(net: nn.Module) -> nn.Module:
    """Return a copy with other weights, as a momentum encoder or a student has them."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.7)
    return other.eval()


def named(**parts: nn.Module | Tensor) -> State:
    """Return the state dict of a module with these parts."""
    state = State()
    for name, part in parts.items():
        if isinstance(part, Tensor):
            state[name] = part
        else:
            state |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    return state


def prefixed(prefix: str, state: State) -> State:
    """Return the state with `prefix` before each name."""
    return {prefix + name: value for name, value in state.items()}


def lightning(state: State, **settings: Any) -> dict[str, Any]:
    """Return what pytorch-lightning's Trainer saves, without loops and callbacks."""
    return {
        "epoch": 9,
        "global_step": 1000,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []}],
        "hyper_parameters": settings,
    }


@contextmanager
def fake_module(name: str, *classes: type) -> Iterator[None]:
    """Context manager with an importable module of that name, for pickling objects of its classes."""
    parts = name.split(".")
    names = [".".join(parts[: count + 1]) for count in range(len(parts))]
    sys.modules |= {one: types.ModuleType(one) for one in names}
    for kind in classes:
        kind.__module__ = name
        kind.__qualname__ = kind.__name__
        setattr(sys.modules[name], kind.__name__, kind)
    try:
        yield
    finally:
        for one in names:
            del sys.modules[one]


# ----------------------------------------------------------------------------------------------------------- lightly


def _children(net: nn.Module) -> nn.Module:
    return nn.Sequential(*list(net.children())[:-1])


def _lightly(**parts: nn.Module | Tensor) -> dict[str, Any]:
    return lightning(named(**parts), lr=0.06)


def _lightly_heads() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightly.models.modules import heads
    return heads


def lightly_one(head: str, *sizes: int, **more: tuple[str, tuple[int, ...]]) -> Checkpoint:
    """Return a lightly model of one backbone, a projection head, and `more` parts (name=(class, sizes))."""
    heads = _lightly_heads()
    net = resnet()
    parts = {name: getattr(heads, kind)(*numbers) for name, (kind, numbers) in more.items()}
    content = _lightly(backbone=_children(net), projection_head=getattr(heads, head)(*sizes), **parts)
    return Checkpoint(content=content, net=net)


def lightly_momentum(head: str, *sizes: int, **more: tuple[str, tuple[int, ...]]) -> Checkpoint:
    """Return a lightly model with a momentum copy of backbone and projection head (MoCo, BYOL, SMoG)."""
    heads = _lightly_heads()
    net = resnet()
    parts = {name: getattr(heads, kind)(*numbers) for name, (kind, numbers) in more.items()}
    content = _lightly(
        backbone=_children(net),
        projection_head=getattr(heads, head)(*sizes),
        backbone_momentum=_children(different(net)),
        projection_head_momentum=getattr(heads, head)(*sizes),
        **parts,
    )
    return Checkpoint(content=content, net=net)


def lightly_dino(net: nn.Module, wrap: Callable[[nn.Module], nn.Module] = lambda net: net) -> Checkpoint:
    """Return lightly's DINO: student and teacher; the teacher is evaluated."""
    head = _lightly_heads().DINOProjectionHead(512, 64, 32, 128)
    content = _lightly(
        student_backbone=wrap(different(net)), student_head=head, teacher_backbone=wrap(net), teacher_head=head
    )
    return Checkpoint(content=content, net=net)


def _masked(net: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
    masked: nn.Module = MaskedVisionTransformerTIMM(vit=net)
    return masked.eval()


def lightly_msn() -> Checkpoint:
    """Return lightly's MSN: `backbone` is the target, an average of `anchor_backbone`."""
    masked = _masked(vit(embed_dim=768, num_heads=12))
    head = _lightly_heads().MSNProjectionHead(768)
    content = _lightly(
        backbone=masked,
        projection_head=head,
        anchor_backbone=different(masked),
        anchor_projection_head=head,
        prototypes=torch.randn(64, 256),
    )
    return Checkpoint(content=content, net=masked)


def lightly_mae() -> Checkpoint:
    """Return lightly's MAE with its decoder, on a ViT-Ti, whose heads nothing in the file tells."""
    from lightly.models.modules.masked_autoencoder_timm import MAEDecoderTIMM

    masked = _masked(vit())
    decoder = MAEDecoderTIMM(
        num_patches=16, patch_size=16, embed_dim=192, decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4
    )
    content = _lightly(backbone=masked, decoder=decoder)
    return Checkpoint(content=content, net=masked, flags={"heads": 3})


def lightly_own_resnet() -> Checkpoint:
    """Return lightly's own ResNet in nn.Sequential, as its CIFAR-10 benchmark has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightly.models import ResNetGenerator
    net = _children(ResNetGenerator("resnet-18"))
    content = _lightly(backbone=net, projection_head=_lightly_heads().SimCLRProjectionHead(512, 64, 16))
    return Checkpoint(content=content, net=net)


SIMSIAM_PREDICTION = ("SimSiamPredictionHead", (16, 8, 16))
BYOL_PREDICTION = ("BYOLPredictionHead", (16, 64, 16))
SMOG_PREDICTION = ("SMoGPredictionHead", (16, 64, 16))
SWAV_PROTOTYPES = ("SwaVPrototypes", (16, 32))

LIGHTLY: dict[str, Callable[[], Checkpoint]] = {
    "SimCLR": lambda: lightly_one("SimCLRProjectionHead", 512, 64, 16),
    "SimSiam": lambda: lightly_one("SimSiamProjectionHead", 512, 64, 16, prediction_head=SIMSIAM_PREDICTION),
    "Barlow Twins": lambda: lightly_one("BarlowTwinsProjectionHead", 512, 64, 64),
    "SwAV": lambda: lightly_one("SwaVProjectionHead", 512, 64, 16, prototypes=SWAV_PROTOTYPES),
    "MoCo": lambda: lightly_momentum("MoCoProjectionHead", 512, 64, 16),
    "BYOL": lambda: lightly_momentum("BYOLProjectionHead", 512, 64, 16, prediction_head=BYOL_PREDICTION),
    "SMoG": lambda: lightly_momentum("SMoGProjectionHead", 512, 64, 16, prediction_head=SMOG_PREDICTION),
    "DINO": lambda: lightly_dino(resnet(), _children),
    "MSN, ViT": lightly_msn,
    "MAE, ViT-Ti, --heads 3": lightly_mae,
}
