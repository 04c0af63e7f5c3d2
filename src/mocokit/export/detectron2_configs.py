"""Detection recipes as Detectron2 YAML configs; each file is complete, without `_BASE_`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torchvision.models.resnet import BasicBlock, Bottleneck

from mocokit.detection.recipes import DetectionRecipe

NORM = "naiveSyncBN"
"""Normalisation layer of moco's own configs, which say "SyncBN seems to cause larger variance for unknown reasons"."""

Settings = dict[str, Any]


def detectron2_yaml(
    recipe: DetectionRecipe,
    *,
    depth: int,
    block: BasicBlock | Bottleneck,
    mean: Sequence[float],
    std: Sequence[float],
    weights: str,
) -> str:
    """Return the config of one recipe as YAML.

    Args:
        recipe: Schedule and sizes.
        depth: Number of layers of the ResNet (18, 50, ...).
        block: First residual block of the ResNet; groups and widths are read from it.
        mean: Mean of the channels R, G, B, in 0..1.
        std: Standard deviation of the channels, in 0..1.
        weights: Name of the weights file.

    """
    config = {
        "MODEL": _model(recipe, depth, block, mean, std, weights),
        "INPUT": {
            "FORMAT": "RGB",
            "MIN_SIZE_TRAIN": recipe.train_short_sides_px,
            "MIN_SIZE_TEST": recipe.test_short_side_px,
            "MAX_SIZE_TRAIN": recipe.max_long_side_px,
            "MAX_SIZE_TEST": recipe.max_long_side_px,
        },
        "DATASETS": _datasets(recipe),
        "SOLVER": {
            "IMS_PER_BATCH": recipe.batch_size,
            "BASE_LR": recipe.lr,
            "MOMENTUM": recipe.sgd_momentum,
            "WEIGHT_DECAY": recipe.weight_decay,
            "WEIGHT_DECAY_NORM": 0.0,
            "GAMMA": 0.1,
            "STEPS": recipe.milestones,
            "MAX_ITER": recipe.iterations,
            "WARMUP_ITERS": recipe.warmup_iterations,
            "WARMUP_FACTOR": recipe.warmup_factor,
        },
        "TEST": {"PRECISE_BN": {"ENABLED": True, "NUM_ITER": recipe.precise_bn_iterations}},
        "VERSION": 2,
    }
    return "\n".join([f"# {recipe.name}, written by mocokit", *_lines(config)]) + "\n"


def _model(
    recipe: DetectionRecipe,
    depth: int,
    block: BasicBlock | Bottleneck,
    mean: Sequence[float],
    std: Sequence[float],
    weights: str,
) -> Settings:
    """Return the MODEL section: backbone, region proposals, and the head for the recipe's neck (C4 or FPN)."""
    conv2 = block.conv2
    out_channels = 64 if isinstance(block, BasicBlock) else block.conv3.out_channels
    model: Settings = {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "WEIGHTS": weights,
        "MASK_ON": recipe.masks,
        "PIXEL_MEAN": [round(255 * value, 3) for value in mean],  # Detectron2's pixels are 0..255
        "PIXEL_STD": [round(255 * value, 3) for value in std],
        "BACKBONE": {"FREEZE_AT": 0},
        "RESNETS": {
            "DEPTH": depth,
            "NORM": NORM,
            "STRIDE_IN_1X1": False,
            "NUM_GROUPS": conv2.groups,
            "WIDTH_PER_GROUP": conv2.out_channels // conv2.groups,
            "RES2_OUT_CHANNELS": out_channels,
        },
        "RPN": {
            "PRE_NMS_TOPK_TRAIN": recipe.rpn_before_nms[0],
            "PRE_NMS_TOPK_TEST": recipe.rpn_before_nms[1],
            "POST_NMS_TOPK_TRAIN": recipe.rpn_after_nms[0],
            "POST_NMS_TOPK_TEST": recipe.rpn_after_nms[1],
        },
        "ROI_HEADS": {"NUM_CLASSES": 80 if recipe.masks else 20, "BATCH_SIZE_PER_IMAGE": recipe.regions_per_image},
        "ANCHOR_GENERATOR": {"SIZES": [list(recipe.anchor_sizes_px)]},
    }
    if recipe.neck == "c4":
        model["ROI_HEADS"]["NAME"] = "Res5ROIHeadsExtraNorm"
        return model
    levels = ["res2", "res3", "res4", "res5"]
    model["BACKBONE"]["NAME"] = "build_resnet_fpn_backbone"
    model["RESNETS"]["OUT_FEATURES"] = levels
    model["FPN"] = {"IN_FEATURES": levels, "NORM": NORM}
    model["ANCHOR_GENERATOR"]["SIZES"] = [[size] for size in recipe.anchor_sizes_px]
    model["RPN"]["IN_FEATURES"] = ["p2", "p3", "p4", "p5", "p6"]
    model["ROI_HEADS"] |= {"NAME": "StandardROIHeads", "IN_FEATURES": ["p2", "p3", "p4", "p5"]}
    model["ROI_BOX_HEAD"] = {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "POOLER_RESOLUTION": 7}
    model["ROI_MASK_HEAD"] = {"NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": 4, "POOLER_RESOLUTION": 14}
    return model


def _datasets(recipe: DetectionRecipe) -> Settings:
    """Return the DATASETS section: COCO for recipes with masks, else VOC07+12."""
    if recipe.masks:
        return {"TRAIN": ["coco_2017_train"], "TEST": ["coco_2017_val"]}
    return {"TRAIN": ["voc_2007_trainval", "voc_2012_trainval"], "TEST": ["voc_2007_test"]}


def _lines(settings: Mapping[str, Any], indent: str = "") -> list[str]:
    """Return YAML lines: mappings as indented blocks, other values as JSON, which is valid YAML."""
    lines: list[str] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {json.dumps(value)}")
    return lines
