"""The papers' numbers as values, each with its source beside it."""

import difflib

from mocokit.config import (
    AugmentConfig,
    Config,
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)

# facebookresearch/moco@3b42c2a main_moco.py: defaults are MoCo v1's ImageNet run on 8 GPUs of 32 images each
# (lr 0.03, SGD 0.9, weight decay 1e-4, 200 epochs, x0.1 at 120 and 160, K 65536, m 0.999, T 0.07, ResNet-50, fp32).
MOCO_V1 = Config(
    data=DataConfig(image_size=224, global_batch_size=256),
    augment=AugmentConfig(aug_plus=False),
    model=ModelConfig(arch="resnet50", mlp=False, dim=128),
    method=MethodConfig(queue_size=65536, temperature=0.07, key_momentum=0.999, bn_groups=8),
    optim=OptimConfig(epochs=200, lr=0.03, cos=False, milestones=(120, 160), sgd_momentum=0.9, weight_decay=1e-4),
    run=RunConfig(precision="fp32"),
)

# README of the same: --mlp --moco-t 0.2 --aug-plus --cos (MoCo v2 Table 1, last row)
MOCO_V2 = Config(
    data=MOCO_V1.data,
    augment=AugmentConfig(aug_plus=True),
    model=ModelConfig(arch="resnet50", mlp=True, dim=128),
    method=MethodConfig(queue_size=65536, temperature=0.2, key_momentum=0.999, bn_groups=8),
    optim=OptimConfig(epochs=200, lr=0.03, cos=True, sgd_momentum=0.9, weight_decay=1e-4),
    run=RunConfig(precision="fp32"),
)

MOCO_V2_800EP = Config(  # MoCo v2 Table 2: 71.1 % linear
    data=MOCO_V2.data,
    augment=MOCO_V2.augment,
    model=MOCO_V2.model,
    method=MOCO_V2.method,
    optim=OptimConfig(epochs=800, lr=0.03, cos=True, sgd_momentum=0.9, weight_decay=1e-4),
    run=MOCO_V2.run,
)

# The official CIFAR-10 recipe for one GPU (branch colab-notebook): ResNet-18, small stem, 8 BatchNorm groups, K 4096,
# m 0.99, T 0.1, lr 0.06 at batch 512, weight decay 5e-4, crops from 8 % of the area, no blur. Ours: the MLP head of
# MoCo v2 instead of fc, mean and std measured on the data, own-image negatives masked, bf16 where the hardware has it.
MOCO_V2_SMALL = Config(
    data=DataConfig(image_size=32, global_batch_size=512, mean=(), std=(), eval_crop_ratio=1.0),
    augment=AugmentConfig(aug_plus=True, crop_scale=(0.08, 1.0), blur_p=0.0),
    model=ModelConfig(arch="resnet18", stem="small", mlp=True, dim=128),
    method=MethodConfig(queue_size=4096, temperature=0.1, key_momentum=0.99, bn_groups=8, mask_same_image=True),
    optim=OptimConfig(epochs=200, lr=0.06, cos=True, sgd_momentum=0.9, weight_decay=5e-4),
    run=RunConfig(precision="auto"),
)

PRESETS = {
    "moco-v1": MOCO_V1,
    "moco-v2": MOCO_V2,
    "moco-v2-800ep": MOCO_V2_800EP,
    "moco-v2-small": MOCO_V2_SMALL,
}

SUMMARIES = {
    "moco-v1": "ImageNet, ResNet-50, 200 epochs; paper: 60.6 % linear",
    "moco-v2": "ImageNet, ResNet-50, 200 epochs; paper: 67.5 % linear",
    "moco-v2-800ep": "ImageNet, ResNet-50, 800 epochs; paper: 71.1 % linear",
    "moco-v2-small": "32 px images, ResNet-18, one device; starts from the official CIFAR-10 recipe",
}


def get_preset(name: str) -> Config:
    """The preset of that name.

    Raises:
        ValueError: Unknown; the message names the nearest one and lists all.

    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"preset={name!r}: unknown; {hint}choose one of {list(PRESETS)}")
    return PRESETS[name]
