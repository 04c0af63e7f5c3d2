"""The papers' settings as presets, each with its source."""

from dataclasses import replace

from mocokit.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)
from mocokit.methods.end_to_end import EndToEndSettings
from mocokit.methods.fast_moco import FastMoCoSettings
from mocokit.methods.memory_bank import MemoryBankSettings
from mocokit.methods.moco import MoCoSettings
from mocokit.methods.moco_v3 import MoCoV3Settings
from mocokit.methods.simclr import SimClrSettings
from mocokit.settings import choose

# facebookresearch/moco@3b42c2a main_moco.py: defaults are MoCo v1's ImageNet run on 8 GPUs of 32 images each
# (lr 0.03, SGD 0.9, weight decay 1e-4, 200 epochs, x0.1 at 120 and 160, K 65536, m 0.999, T 0.07, ResNet-50, fp32).
MOCO_V1 = Config(
    data=DataConfig(image_size=224, global_batch_size=256),
    augment=AugmentConfig(aug_plus=False),
    model=ModelConfig(arch="resnet50", mlp=False, dim=128),
    method=MoCoSettings(queue_size=65536, temperature=0.07, key_momentum=0.999, bn_groups=8),
    optim=OptimConfig(epochs=200, lr=0.03, schedule="step", milestones=(120, 160), sgd_momentum=0.9, weight_decay=1e-4),
    run=RunConfig(precision="fp32"),
)

# The README of that repository: --mlp --moco-t 0.2 --aug-plus --cos (MoCo v2 Table 1, last row).
MOCO_V2 = Config(
    data=MOCO_V1.data,
    augment=AugmentConfig(aug_plus=True),
    model=ModelConfig(arch="resnet50", mlp=True, dim=128),
    method=MoCoSettings(queue_size=65536, temperature=0.2, key_momentum=0.999, bn_groups=8),
    optim=OptimConfig(epochs=200, lr=0.03, schedule="cosine", sgd_momentum=0.9, weight_decay=1e-4),
    run=RunConfig(precision="fp32"),
)

MOCO_V2_800EP = Config(  # MoCo v2 Table 2: 71.1 % linear
    data=MOCO_V2.data,
    augment=MOCO_V2.augment,
    model=MOCO_V2.model,
    method=MOCO_V2.method,
    optim=OptimConfig(epochs=800, lr=0.03, schedule="cosine", sgd_momentum=0.9, weight_decay=1e-4),
    run=MOCO_V2.run,
)

# The official CIFAR-10 recipe for one GPU (branch colab-notebook): ResNet-18, small stem, 8 BatchNorm groups, K 4096,
# m 0.99, T 0.1, lr 0.06 at batch 512, weight decay 5e-4, crops from 8 % of the area, no blur. We changed: MoCo v2's
# MLP head instead of fc, mean and std measured on the data, negatives of the query's own image masked, bf16 where the
# hardware has it.
MOCO_V2_SMALL = Config(
    data=DataConfig(image_size=32, global_batch_size=512, mean=(), std=(), eval_crop_ratio=1.0),
    augment=AugmentConfig(aug_plus=True, crop_scale=(0.08, 1.0), blur_p=0.0),
    model=ModelConfig(arch="resnet18", stem="small", mlp=True, dim=128),
    method=MoCoSettings(queue_size=4096, temperature=0.1, key_momentum=0.99, bn_groups=8, mask_same_image=True),
    optim=OptimConfig(epochs=200, lr=0.06, schedule="cosine", sgd_momentum=0.9, weight_decay=5e-4),
    run=RunConfig(precision="auto"),
)

# The same notebook unchanged, with the symmetric loss: ResNet-18's fc as head, mean and std of CIFAR-10, flips, jitter
# and grayscale of aug+, no blur. Its kNN accuracy is 85.3 after 200 epochs (82.6 with the asymmetric loss). The
# notebook counts epochs from 1, so that its last epoch has the learning rate 0.
MOCO_V2_CIFAR = Config(
    data=DataConfig(
        image_size=32,
        global_batch_size=512,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        eval_crop_ratio=1.0,
    ),
    augment=AugmentConfig(crop_scale=(0.08, 1.0), blur_p=0.0),
    model=ModelConfig(arch="resnet18", stem="small", mlp=False, dim=128),
    method=MoCoSettings(queue_size=4096, temperature=0.1, key_momentum=0.99, bn_groups=8, symmetric=True),
    optim=OptimConfig(epochs=200, lr=0.06, schedule="cosine", lr_end="last", sgd_momentum=0.9, weight_decay=5e-4),
    run=RunConfig(precision="fp32", knn_k=200, knn_temperature=0.1),
)

# MoCo v1 sec. 4.1, fig. 3 compares the mechanisms under one objective; all else is as in MOCO_V1. End-to-end reaches a
# batch of 1024 on 8 GPUs, with the learning rate scaled linearly (0.03 * 1024/256) [paper recall].
END_TO_END = replace(
    MOCO_V1,
    data=DataConfig(image_size=224, global_batch_size=1024),
    method=EndToEndSettings(temperature=0.07, bn_groups=8),
    optim=replace(MOCO_V1.optim, lr=0.12),
)

# The same comparison: 65536 features sampled from the bank (58.0 %, MoCo 60.6 [paper recall]). T 0.07 and a feature
# momentum of 0.5 are from InstDisc (Wu et al. 2018), which had K 4096 and NCE. BatchNorm is per GPU as in MoCo v1,
# without shuffling.
MEMORY_BANK = replace(
    MOCO_V1,
    method=MemoryBankSettings(temperature=0.07, bn_groups=8, num_negatives=65536, feature_momentum=0.5),
)

# google-research/simclr README, ImageNet: ResNet-50, batch 4096, 100 epochs, T 0.1, LARS with lr 0.075 * sqrt(4096) =
# 4.8, momentum 0.9, trust 0.001, weight decay 1e-4, 10 epochs of warm-up, cosine per step, BatchNorm over all ranks.
# Pixels stay in 0..1. The head of v1 has 2 layers. Residual branches start as zero (resnet.py, init_zero).
SIMCLR = Config(
    data=DataConfig(image_size=224, global_batch_size=4096, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    augment=AugmentConfig(recipe="simclr"),
    model=ModelConfig(arch="resnet50", head_layers=2, dim=128, zero_init_residual=True),
    method=SimClrSettings(temperature=0.1, bn_groups=1),
    optim=OptimConfig(
        name="lars-classic",
        epochs=100,
        lr=4.8,
        lr_by="step",
        warmup_epochs=10.0,
        sgd_momentum=0.9,
        weight_decay=1e-4,
        trust_coefficient=0.001,
    ),
    run=RunConfig(precision="fp32"),
)

# SimCLR with v2's head of 3 layers (SimCLR v2 sec. 2.1), for which the README reports 64.5 %.
SIMCLR_V2_HEAD = replace(SIMCLR, model=replace(SIMCLR.model, head_layers=3))

# The same README, CIFAR-10: ResNet-18, batch 512, 1000 epochs, T 0.5, lr 1.0 * 512/256, weight decay 1e-4, color
# strength 0.5, no blur; about 91 % linear.
SIMCLR_CIFAR = Config(
    data=replace(SIMCLR.data, image_size=32, global_batch_size=512, eval_crop_ratio=1.0),
    augment=replace(
        SIMCLR.augment,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        blur_p=0.0,  # 0.5 * (0.8, 0.8, 0.8, 0.2)
    ),
    model=ModelConfig(arch="resnet18", stem="small", head_layers=3, dim=128, zero_init_residual=True),
    method=SimClrSettings(temperature=0.5, bn_groups=1),
    optim=replace(SIMCLR.optim, epochs=1000, lr=2.0),
    run=SIMCLR.run,
)

# MoCo v3 (moco-v3 CONFIG.md and README), ResNet-50: batch 4096, LARS with lr 0.6 * 4096/256 for 100 epochs, 0.3 else;
# m 0.99, for 1000 epochs 0.996, to 1; T 1.0; weight decay 1e-6, for 1000 epochs 1.5e-6; 10 epochs of warm-up; crops
# from 20 %; BatchNorm over all ranks; zero-init residual branches; fp16. 68.9, 72.8 and 74.6 % linear.
MOCO_V3_METHOD = MoCoV3Settings(temperature=1.0, key_momentum=0.99, key_momentum_cos=True, bn_groups=1)
MOCO_V3_R50_100EP = Config(
    data=DataConfig(image_size=224, global_batch_size=4096),
    augment=AugmentConfig(recipe="moco-v3"),
    model=ModelConfig(
        arch="resnet50", dim=256, head_layers=2, head_width=4096, predictor_bn=False, zero_init_residual=True
    ),
    method=MOCO_V3_METHOD,
    optim=OptimConfig(
        name="lars",
        epochs=100,
        lr=9.6,
        lr_by="step",
        warmup_epochs=10.0,
        sgd_momentum=0.9,
        weight_decay=1e-6,
        trust_coefficient=0.001,
    ),
    run=RunConfig(precision="fp16"),
)
MOCO_V3_R50_300EP = replace(MOCO_V3_R50_100EP, optim=replace(MOCO_V3_R50_100EP.optim, epochs=300, lr=4.8))
MOCO_V3_R50_1000EP = replace(
    MOCO_V3_R50_100EP,
    method=replace(MOCO_V3_METHOD, key_momentum=0.996),
    optim=replace(MOCO_V3_R50_100EP.optim, epochs=1000, lr=4.8, weight_decay=1.5e-6),
)

# The same for ViTs: 12 heads also in ViT-S, fixed sine-cosine positions, frozen patch projection, T 0.2, AdamW with lr
# 1.5e-4 * 4096/256, weight decay 0.1, 300 epochs with 40 of warm-up, crops from 8 %, projector of 3 layers. 73.2 (S)
# and 76.7 % (B) linear.
MOCO_V3_VIT_S = Config(
    data=MOCO_V3_R50_100EP.data,
    augment=AugmentConfig(recipe="moco-v3", crop_scale=(0.08, 1.0)),
    model=ModelConfig(
        arch="vit_small_patch16_224_h12",
        dim=256,
        head_layers=3,
        head_width=4096,
        predictor_bn=True,
        vit_init="moco-v3",
        freeze_patch_embed=True,
    ),
    method=MoCoV3Settings(temperature=0.2, key_momentum=0.99, key_momentum_cos=True, bn_groups=1),
    optim=OptimConfig(name="adamw", epochs=300, lr=2.4e-3, lr_by="step", warmup_epochs=40.0, weight_decay=0.1),
    run=RunConfig(precision="fp16"),
)
MOCO_V3_VIT_B = replace(MOCO_V3_VIT_S, model=replace(MOCO_V3_VIT_S.model, arch="vit_base_patch16_224"))

# Fast-MoCo (Ci et al. 2022; orashi/Fast-MoCo fastmoco_e100/config.yaml and core/utils/fastmoco_builder.py): MoCo v3's
# step with queries from pairs of the 2 x 2 patches, MoCo v2's augmentation with bicubic crops; T 1, m 0.99; batch 512
# on 16 GPUs, SGD with lr 0.1, weight decay 1e-4, gradients clipped to length 1; 1 epoch of warm-up from 0.025, then a
# cosine that is 0 in the last step, the predictor's rate constant; BatchNorm over all ranks; zero-init residual
# branches. 73.5 % linear.
FAST_MOCO = Config(
    data=DataConfig(image_size=224, global_batch_size=512),
    augment=AugmentConfig(recipe="moco", aug_plus=True, bicubic=True),
    model=ModelConfig(arch="resnet50", dim=2048, head_width=2048, predictor_width=512, zero_init_residual=True),
    method=FastMoCoSettings(temperature=1.0, key_momentum=0.99, bn_groups=1, patch_grid=2, patches_combined=2),
    optim=OptimConfig(
        name="sgd",
        epochs=100,
        lr=0.1,
        lr_by="step",
        lr_end="last",
        warmup_epochs=1.0,
        warmup_from=0.25,  # 0.025
        predictor_lr="constant",
        sgd_momentum=0.9,
        weight_decay=1e-4,
        clip_norm=1.0,
    ),
    run=RunConfig(precision="fp32"),
)

PRESETS = {
    "moco-v1": MOCO_V1,
    "moco-v2": MOCO_V2,
    "moco-v2-800ep": MOCO_V2_800EP,
    "moco-v2-small": MOCO_V2_SMALL,
    "moco-v2-cifar": MOCO_V2_CIFAR,
    "end-to-end": END_TO_END,
    "memory-bank": MEMORY_BANK,
    "simclr": SIMCLR,
    "simclr-v2-head": SIMCLR_V2_HEAD,
    "simclr-cifar": SIMCLR_CIFAR,
    "moco-v3-r50-100ep": MOCO_V3_R50_100EP,
    "moco-v3-r50-300ep": MOCO_V3_R50_300EP,
    "moco-v3-r50-1000ep": MOCO_V3_R50_1000EP,
    "moco-v3-vit-s": MOCO_V3_VIT_S,
    "moco-v3-vit-b": MOCO_V3_VIT_B,
    "fast-moco": FAST_MOCO,
}

SUMMARIES = {
    "moco-v1": "ImageNet, ResNet-50, 200 epochs; paper: 60.6 % linear",
    "moco-v2": "ImageNet, ResNet-50, 200 epochs; paper: 67.5 % linear",
    "moco-v2-800ep": "ImageNet, ResNet-50, 800 epochs; paper: 71.1 % linear",
    "moco-v2-small": "32 px images, ResNet-18, one device; starts from the official CIFAR-10 recipe",
    "moco-v2-cifar": "CIFAR-10, ResNet-18, 200 epochs, symmetric; official notebook: 85.3 % kNN",
    "end-to-end": "MoCo v1's comparison: both encoders trained, negatives from the batch of 1024",
    "memory-bank": "MoCo v1's comparison: stored features, 65536 sampled; paper: 58.0 % linear [recall]",
    "simclr": "ImageNet, ResNet-50, 100 epochs, batch 4096, v1's head of 2 layers",
    "simclr-v2-head": "the same with v2's head of 3 layers; official README: 64.5 % linear",
    "simclr-cifar": "CIFAR-10, ResNet-18, 1000 epochs; official README: about 91 % linear",
    "moco-v3-r50-100ep": "ImageNet, ResNet-50, 100 epochs, batch 4096; official README: 68.9 % linear",
    "moco-v3-r50-300ep": "ImageNet, ResNet-50, 300 epochs; official README: 72.8 % linear",
    "moco-v3-r50-1000ep": "ImageNet, ResNet-50, 1000 epochs; official README: 74.6 % linear",
    "moco-v3-vit-s": "ImageNet, ViT-S/16 with 12 heads, 300 epochs; official README: 73.2 % linear",
    "moco-v3-vit-b": "ImageNet, ViT-B/16, 300 epochs; official README: 76.7 % linear",
    "fast-moco": "ImageNet, ResNet-50, 100 epochs, queries from patches; official README: 73.5 % linear",
}


def get_preset(name: str) -> Config:
    """Return the preset of that name.

    Raises:
        ValueError: Unknown name; the message gives the nearest name and all names.

    """
    return choose("preset", name, PRESETS)
