"""Checkpoints of projects that are not installed here, with the names of their public sources; and the whole table."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from foreign_checkpoints import (
    LIGHTLY,
    MLP,
    Checkpoint,
    Row,
    State,
    different,
    lightly_own_resnet,
    lightning,
    named,
    prefixed,
    resnet,
    vit,
)
from torch import Tensor, nn

from mocokit.nets.vit_moco_v3 import sincos_positions

Parts = dict[str, nn.Module | Tensor]

QUEUE = {"queue": torch.zeros(16, 40), "queue_ptr": torch.zeros(1, dtype=torch.long)}

# ------------------------------------------------------------------------------------------------- official programs


def moco() -> Checkpoint:
    """Return main_moco.py's checkpoint: both encoders with their heads, and the queue."""
    net = resnet()
    encoders = {"encoder_q": (net, MLP), "encoder_k": (different(net), MLP)}
    state = dict(QUEUE)
    for name, (backbone, head) in encoders.items():
        state |= {**prefixed(f"{name}.", backbone.state_dict()), **prefixed(f"{name}.fc.", head.state_dict())}
    return Checkpoint(content={"epoch": 200, "arch": "resnet18", "state_dict": prefixed("module.", state)}, net=net)


def moco_cifar() -> Checkpoint:
    """Return the CIFAR-10 notebook's: a ResNet in nn.Sequential without max-pool; nothing tells its padding."""
    net = resnet(stem="small")
    parts = [part for name, part in net.named_children() if name not in ("maxpool", "fc")]
    whole = nn.Sequential(*parts, nn.Flatten(), nn.Linear(512, 16))
    state = {**named(**{"encoder_q.net": whole, "encoder_k.net": different(whole)}), **QUEUE}
    content = {"epoch": 9, "state_dict": state, "optimizer": {}}
    return Checkpoint(content=content, net=net, image_size=32, flags={"padding": 1})


def mae_positions(grid: int, width: int) -> Tensor:
    """Return MAE's fixed positions (1, 1 + grid * grid, width): the column's sines and cosines, then the row's."""
    halves = sincos_positions((grid, grid), width).float().split(width // 2, dim=2)  # the row's, the column's
    return torch.cat([halves[1], halves[0]], dim=2)


def moco_v3_vit(**options: Any) -> Any:
    """Return MoCo v3's ViT-S of two blocks: 12 heads, fixed positions."""
    net = vit(embed_dim=384, **{"num_heads": 12, **options})
    net.pos_embed.data.copy_(sincos_positions((4, 4), 384))
    return net


def moco_v3() -> Checkpoint:
    """Return MoCo v3's checkpoint of pre-training."""
    net = moco_v3_vit()
    parts = {"base_encoder": net, "base_encoder.head": MLP, "momentum_encoder": different(net), "predictor": MLP}
    return Checkpoint(content={"epoch": 300, "state_dict": prefixed("module.", named(**parts))}, net=net)


def moco_v3_lincls() -> Checkpoint:
    """Return main_lincls.py's: the ViT and its linear classifier, and nothing that names MoCo v3."""
    net = moco_v3_vit()
    state = {**net.state_dict(), **named(head=nn.Linear(384, 10))}
    return Checkpoint(content={"epoch": 90, "arch": "vit_small", "state_dict": prefixed("module.", state)}, net=net)


def moco_v3_deit() -> Checkpoint:
    """Return convert_to_deit.py's."""
    net = moco_v3_vit()
    return Checkpoint(content={"model": dict(net.state_dict())}, net=net)


def moco_v3_tuned() -> Checkpoint:
    """Return a ViT-S whose positions were trained on: nothing tells its heads."""
    net = vit(embed_dim=384, num_heads=12)
    return Checkpoint(content={"model": dict(net.state_dict())}, net=net)


def simsiam() -> Checkpoint:
    """Return SimSiam's: the projector is the encoder's fc."""
    net = resnet()
    state = named(encoder=net, **{"encoder.fc": MLP, "predictor": MLP})
    return Checkpoint(content={"epoch": 99, "arch": "resnet18", "state_dict": prefixed("module.", state)}, net=net)


def sthalles() -> Checkpoint:
    """Return sthalles/SimCLR's: the projection head is the backbone's fc."""
    net = resnet()
    state = named(backbone=net, **{"backbone.fc": MLP})
    return Checkpoint(
        content={"epoch": 9, "arch": "resnet18", "state_dict": state, "optimizer": {"state": {}}}, net=net
    )


def spijkervet() -> Checkpoint:
    """Return Spijkervet/SimCLR's: a bare state dict."""
    net = resnet()
    return Checkpoint(content=named(encoder=net, projector=MLP), net=net)


def supcon() -> Checkpoint:
    """Return SupCon's for CIFAR: its own ResNet, whose shortcuts are called so; stem 3x3, stride 1, padding 1."""
    net = resnet(stem="small")
    state = {name.replace("downsample", "shortcut"): value for name, value in net.state_dict().items()}
    model = {**prefixed("module.encoder.", state), **prefixed("module.head.", MLP.state_dict())}
    options = argparse.Namespace(model="resnet18", dataset="cifar10", size=32)
    return Checkpoint(content={"opt": options, "model": model, "optimizer": {}, "epoch": 9}, net=net, image_size=32)


def barlow_twins() -> Checkpoint:
    """Return Barlow Twins': a BatchNorm of the loss stands beside the projector."""
    net = resnet()
    state = named(backbone=net, projector=MLP, bn=nn.BatchNorm1d(16, affine=False))
    return Checkpoint(content={"epoch": 9, "model": prefixed("module.", state), "optimizer": {}}, net=net)


def swav() -> Checkpoint:
    """Return SwAV's: no prefix but module."""
    net = resnet()
    state = {**net.state_dict(), **named(projection_head=MLP, prototypes=nn.Linear(16, 32, bias=False))}
    return Checkpoint(content={"epoch": 9, "state_dict": prefixed("module.", state), "optimizer": {}}, net=net)


def vissl() -> Checkpoint:
    """Return VISSL's: trunk and heads apart, deep inside."""
    net = resnet()
    model = {"trunk": named(_feature_blocks=net), "heads": named(**{"0.clf": nn.Linear(512, 16)})}
    base = {"model": model, "meta": {}}
    return Checkpoint(content={"phase_idx": 9, "classy_state_dict": {"base_model": base, "loss": {}}}, net=net)


def dino() -> Checkpoint:
    """Return DINO's: student and teacher, and argparse's Namespace; the teacher is evaluated."""
    net = vit(embed_dim=384, num_heads=6)
    head = {"head": MLP}
    content = {
        "student": prefixed("module.", named(backbone=different(net), **head)),
        "teacher": named(backbone=net, **head),
        "args": argparse.Namespace(arch="vit_small", patch_size=16, out_dim=65536, lr=0.0005),
        "epoch": 100,
        "dino_loss": {"center": torch.zeros(1, 16)},
    }
    return Checkpoint(content=content, net=net)


def dinov2_names(net: Any, *, chunks: bool = False) -> State:
    """Return a timm ViT's weights under DINOv2's names, with a position for the class token and a mask token."""
    state = State(mask_token=torch.zeros(1, net.embed_dim))
    for name, value in net.state_dict().items():
        theirs = name.replace("reg_token", "register_tokens")
        if net.blocks[0].mlp.__class__.__name__ != "Mlp":
            theirs = theirs.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        if chunks and theirs.startswith("blocks."):
            theirs = f"blocks.{int(theirs.split('.')[1]) // 2}.{theirs.removeprefix('blocks.')}"
        state[theirs] = value
    if net.no_embed_class:
        place = torch.randn(1, 1, net.embed_dim)
        state["cls_token"] = net.cls_token.detach() - place
        state["pos_embed"] = torch.cat([place, net.pos_embed.detach()], dim=1)
    return state


def dinov2(name: str, **options: Any) -> Checkpoint:
    """Return DINOv2's published file: a bare state dict."""
    net = vit(name, **{"img_size": 56, **options})
    return Checkpoint(content=dinov2_names(net), net=net, image_size=56)


def dinov2_training() -> Checkpoint:
    """Return DINOv2's teacher_checkpoint.pth: heads beside the backbone, blocks in chunks."""
    net = vit("vit_small_patch14_dinov2", img_size=56, depth=4)
    state = {**prefixed("backbone.", dinov2_names(net, chunks=True)), **named(dino_head=MLP, ibot_head=MLP)}
    return Checkpoint(content={"teacher": state}, net=net, image_size=56)


def mae() -> Checkpoint:
    """Return the official MAE's: encoder and decoder side by side, and argparse's Namespace."""
    net = vit(embed_dim=768, num_heads=12)
    net.pos_embed.data.copy_(mae_positions(4, 768))
    decoder = {"mask_token": torch.zeros(1, 1, 64), "decoder_pos_embed": torch.zeros(1, 17, 64)}
    parts = named(decoder_embed=nn.Linear(768, 64), decoder_blocks=nn.Sequential(nn.Linear(64, 64)))
    content = {"model": {**net.state_dict(), **decoder, **parts}, "epoch": 1, "args": argparse.Namespace(model="mae")}
    return Checkpoint(content=content, net=net)


# -------------------------------------------------------------------------------------------------------- solo-learn


def solo(
    net: nn.Module, *, width: int = 512, settings: dict[str, Any] | None = None, parts: Parts | None = None
) -> dict[str, Any]:
    """Return solo-learn's: every method has `backbone` and an online `classifier`."""
    return lightning(named(backbone=net, classifier=nn.Linear(width, 10), **(parts or {})), **(settings or {}))


def solo_cifar() -> Checkpoint:
    """Return solo-learn's MoCo v2+ on CIFAR-10, with OmegaConf's config: the stem pads by 2."""
    from omegaconf import OmegaConf

    net = resnet(stem="small", padding=2)
    config = OmegaConf.create(
        {
            "method": "mocov2plus",
            "backbone": {"name": "resnet18"},
            "data": {"dataset": "cifar10", "num_classes": 10},
            "augmentations": [{"crop_size": 32, "rrc": {"enabled": True}}],
        }
    )
    parts: Parts = {"projector": MLP, "momentum_backbone": different(net), "momentum_projector": MLP, **QUEUE}
    content = solo(net, parts=parts) | {"hyper_parameters": {"cfg": config}}
    return Checkpoint(content=content, net=net, image_size=32)


def solo_cifar_alone() -> Checkpoint:
    """Return the same without settings."""
    checkpoint = solo_cifar()
    return Checkpoint(content={"state_dict": checkpoint.content["state_dict"]}, net=checkpoint.net, image_size=32)


def solo_dino() -> Checkpoint:
    """Return solo-learn's DINO."""
    net = resnet()
    parts: Parts = {"momentum_backbone": different(net), "head": MLP, "momentum_head": MLP, "momentum_classifier": MLP}
    return Checkpoint(content=solo(net, parts=parts | {"dino_loss_func.center": torch.zeros(1, 16)}), net=net)


def solo_swav() -> Checkpoint:
    """Return solo-learn's SwAV."""
    net = resnet()
    return Checkpoint(content=solo(net, parts={"projector": MLP, "prototypes": nn.Linear(16, 32)}), net=net)


def solo_deepcluster() -> Checkpoint:
    """Return solo-learn's DeepCluster v2."""
    net = resnet()
    parts: Parts = {"projector": MLP, "prototypes": nn.ModuleList([nn.Linear(16, 32, bias=False)])}
    parts |= {"local_memory_index": torch.zeros(4), "local_memory_embeddings": torch.zeros(2, 4, 16)}
    return Checkpoint(content=solo(net, parts=parts), net=net)


def solo_mae() -> Checkpoint:
    """Return solo-learn's MAE on its ViT-Ti, which has 12 heads where timm's has 3."""
    net = vit(num_heads=12)
    net.pos_embed.data.copy_(mae_positions(4, 192))
    settings = {"method": "mae", "backbone": {"name": "vit_tiny"}, "data": {"dataset": "imagenet100"}}
    decoder = nn.ModuleDict({"decoder_embed": nn.Linear(192, 64)})
    decoder.register_parameter("mask_token", nn.Parameter(torch.zeros(1, 1, 64)))
    return Checkpoint(content=solo(net, width=192, settings=settings, parts={"decoder": decoder}), net=net)


def solo_moco_v3() -> Checkpoint:
    """Return solo-learn's MoCo v3 on its ViT-S of 12 heads, without settings: the fixed positions tell."""
    net = moco_v3_vit()
    parts: Parts = {"projector": MLP, "predictor": MLP, "momentum_backbone": different(net), "momentum_projector": MLP}
    return Checkpoint(content=solo(net, width=384, parts=parts), net=net)


# --------------------------------------------------------------------------------------------------------- mmselfsup

PREPROCESSOR = {
    "data_preprocessor.mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
    "data_preprocessor.std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
}


def mmselfsup(net: nn.Module, *, average: str, **more: nn.Module) -> State:
    """Return mmselfsup's: backbone, neck, head, an average of the first two, and the images' mean and std."""
    both = nn.Sequential(different(net), MLP)
    return {
        **named(backbone=net, neck=MLP, **more),
        **prefixed(f"{average}.module.", both.state_dict()),
        **PREPROCESSOR,
    }


def mm_byol() -> Checkpoint:
    """Return mmselfsup's BYOL."""
    net = resnet()
    state = {**mmselfsup(net, average="target_net", head=MLP), "target_net.steps": torch.tensor(9)}
    return Checkpoint(content={"meta": {"epoch": 9}, "state_dict": state}, net=net)


def mm_vit_names(net: Any) -> State:
    """Return a timm ViT's weights under mmpretrain's names."""
    names = {
        "patch_embed.proj.": "patch_embed.projection.",
        "blocks.": "layers.",
        "norm1.": "ln1.",
        "norm2.": "ln2.",
        "mlp.fc1.": "ffn.layers.0.0.",
        "mlp.fc2.": "ffn.layers.1.",
    }
    state = State()
    for name, value in net.state_dict().items():
        theirs = f"ln1.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        for ours, other in names.items():
            theirs = theirs.replace(ours, other)
        state[theirs] = value
    return state


def mm_moco_v3() -> Checkpoint:
    """Return mmselfsup's MoCo v3: mmpretrain's ViT-S of 12 heads."""
    net = moco_v3_vit()
    state = {**prefixed("backbone.", mm_vit_names(net)), **named(neck=MLP, head=MLP), **PREPROCESSOR}
    state |= prefixed("momentum_encoder.module.0.", mm_vit_names(different(net)))
    return Checkpoint(content={"meta": {"epoch": 9}, "state_dict": state}, net=net)


def mm_training() -> Checkpoint:
    """Return a training file: optimizer, schedulers, and mmengine's message hub with objects of its classes."""
    net = resnet()

    class HistoryBuffer:
        def __init__(self) -> None:
            self.history = [1.0, 2.0]
            self.functions = {"max": max, "getattr": getattr}

    class ConfigDict(dict[str, Any]):
        pass

    content = {
        "meta": {"epoch": 9, "cfg": "model = dict(type='MoCo')", "more": ConfigDict(seed=0), "lr": np.float32(0.03)},
        "state_dict": {**mmselfsup(net, average="encoder_k"), **QUEUE},
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"iter": np.int64(9)}},
        "optimizer": {"state": {}, "param_groups": []},
    }
    classes: dict[str, tuple[type, ...]] = {
        "mmengine.logging.history_buffer": (HistoryBuffer,),
        "mmengine_config": (ConfigDict,),
    }
    return Checkpoint(content=content, net=net, classes=classes)


# ------------------------------------------------------------------------------------------- Lightning, torch and timm


def bolts_moco() -> Checkpoint:
    """Return lightning-bolts' MoCo: as the official one, with a second queue for validation."""
    checkpoint = moco()
    state = {name.removeprefix("module."): value for name, value in checkpoint.content["state_dict"].items()}
    return Checkpoint(content=lightning({**state, "val_queue": torch.zeros(16, 40)}), net=checkpoint.net)


def bolts_byol() -> Checkpoint:
    """Return lightning-bolts' BYOL: online and target network with an encoder each."""
    net = resnet()
    parts = {"online_network.encoder": net, "online_network.projector": MLP, "predictor": MLP}
    parts |= {"target_network.encoder": different(net), "target_network.projector": MLP}
    return Checkpoint(content=lightning(named(**parts)), net=net)


def bolts_simclr() -> Checkpoint:
    """Return lightning-bolts' SimCLR with the stem for small images, which its settings tell."""
    net = resnet(stem="small")
    state = named(encoder=net, projection=MLP)
    return Checkpoint(content=lightning(state, first_conv=False, maxpool1=False), net=net, image_size=32)


def plain_lightning() -> Checkpoint:
    """Return a LightningModule with `self.model`."""
    net = resnet()
    state = named(model=net, **{"model.fc": nn.Linear(512, 10)})
    return Checkpoint(content=lightning(state, options=argparse.Namespace(lr=0.1)), net=net, suffix=".ckpt")


def compiled_state(net: nn.Module) -> State:
    """Return the state dict of torch.compile(net)."""
    module = torch.compile(net)
    assert isinstance(module, nn.Module)
    return dict(module.state_dict())


def compiled() -> Checkpoint:
    """Return the state dict of a compiled network in DistributedDataParallel's names."""
    net = resnet()
    return Checkpoint(content={"model": prefixed("module.", compiled_state(net))}, net=net)


def compiled_inside() -> Checkpoint:
    """Return lightly's SimCLR whose backbone alone was compiled."""
    net = resnet()
    state = {**prefixed("backbone.", compiled_state(net)), **named(projection_head=MLP)}
    return Checkpoint(content=lightning(state), net=net)


def whole_module() -> Checkpoint:
    """Return a pickled module, torch.save(model)."""
    net = resnet()
    return Checkpoint(content=net, net=net)


def torchvision_resnet() -> Checkpoint:
    """Return torchvision's published file: with classifier."""
    net = resnet()
    state = {**net.state_dict(), **named(fc=nn.Linear(512, 1000))}
    return Checkpoint(content=state, net=net)


def old_file() -> Checkpoint:
    """Return torchvision's file from before torch 1.6."""
    checkpoint = torchvision_resnet()
    return Checkpoint(content=checkpoint.content, net=checkpoint.net, old_format=True)


def timm_vit() -> Checkpoint:
    """Return a timm ViT as safetensors."""
    net = vit()
    return Checkpoint(content={**net.state_dict(), **named(head=nn.Linear(192, 10))}, net=net, suffix=".safetensors")


def _rows(project: str, file: str, builders: dict[str, Callable[[], Checkpoint]]) -> list[Row]:
    return [Row(project=project, method=method, file=file, build=build) for method, build in builders.items()]


TABLE: list[Row] = [
    *_rows("lightly", "Lightning .ckpt", LIGHTLY),
    Row(
        project="lightly",
        method="any, lightly's ResNetGenerator",
        file="Lightning .ckpt",
        build=lightly_own_resnet,
        refused="has no ReLU after its first BatchNorm",
    ),
    *_rows(
        "solo-learn",
        "Lightning .ckpt",
        {
            "MoCo v2+, CIFAR-10, OmegaConf settings": solo_cifar,
            "DINO": solo_dino,
            "SwAV": solo_swav,
            "DeepCluster v2": solo_deepcluster,
            "MAE, ViT-Ti": solo_mae,
            "MoCo v3, ViT-S": solo_moco_v3,
        },
    ),
    Row(
        project="solo-learn",
        method="any, CIFAR-10, without settings or flag",
        file="state dict",
        build=solo_cifar_alone,
        refused="say --padding 2 for solo-learn",
    ),
    *_rows("MoCo v1/v2", ".pth.tar", {"main_moco.py": moco, "CIFAR-10 notebook, --padding 1": moco_cifar}),
    *_rows("MoCo v3", ".pth.tar", {"ViT-S": moco_v3, "ViT-S after main_lincls.py": moco_v3_lincls}),
    *_rows("MoCo v3", ".pth", {"ViT-S after convert_to_deit.py": moco_v3_deit}),
    Row(
        project="MoCo v3",
        method="ViT-S with trained positions, without flag",
        file=".pth",
        build=moco_v3_tuned,
        refused="neither weights nor settings tell the heads of a ViT of width 384",
    ),
    *_rows("mmselfsup", "weights", {"BYOL": mm_byol, "MoCo v3, ViT-S": mm_moco_v3}),
    *_rows("mmselfsup", "training file", {"MoCo v2": mm_training}),
    *_rows("DINO", "training file", {"ViT-S": dino}),
    *_rows(
        "DINOv2",
        "published weights",
        {
            "ViT-S/14": lambda: dinov2("vit_small_patch14_dinov2"),
            "ViT-S/14, 4 registers": lambda: dinov2("vit_small_patch14_reg4_dinov2"),
            "ViT-g/14 (SwiGLU)": lambda: dinov2("vit_giant_patch14_dinov2", embed_dim=192, num_heads=3),
        },
    ),
    *_rows("DINOv2", "teacher_checkpoint.pth", {"ViT-S/14, blocks in chunks": dinov2_training}),
    *_rows("MAE", ".pth", {"ViT-B with decoder": mae}),
    *_rows("SimSiam", ".pth.tar", {"SimSiam": simsiam}),
    *_rows("sthalles/SimCLR", ".pth.tar", {"SimCLR": sthalles}),
    *_rows("Spijkervet/SimCLR", ".tar", {"SimCLR": spijkervet}),
    *_rows("SupContrast", ".pth", {"SupCon, CIFAR-10": supcon}),
    *_rows("Barlow Twins", "checkpoint.pth", {"Barlow Twins": barlow_twins}),
    *_rows("SwAV", ".pth.tar", {"SwAV": swav}),
    *_rows("VISSL", ".torch", {"any": vissl}),
    *_rows(
        "lightning-bolts",
        "Lightning .ckpt",
        {"MoCo": bolts_moco, "BYOL": bolts_byol, "SimCLR, small stem": bolts_simclr},
    ),
    *_rows("pytorch-lightning", "Lightning .ckpt", {"self.model": plain_lightning}),
    *_rows("torch", ".pth", {"compiled, in DDP": compiled, "a compiled backbone": compiled_inside}),
    *_rows("torch", "torch.save(model)", {"a whole module": whole_module}),
    *_rows("torchvision", ".pth", {"ResNet-18": torchvision_resnet, "ResNet-18, before torch 1.6": old_file}),
    *_rows("timm", ".safetensors", {"ViT-Ti": timm_vit}),
]
"""All checkpoints that are tried, with what must come of them."""
