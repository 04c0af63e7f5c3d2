"""Faster and Mask R-CNN around a ResNet backbone, built from torchvision's detection parts in Detectron2's layout.

Three differences from Detectron2 remain, since they are inside torchvision's parts: smooth L1 bends at 1/9 instead of
0, anchors are rounded to whole pixels, and "fpn" cuts regions without `aligned=True`.

Shapes: N images, R regions of a batch, D feature dimension, L classes without the background, (H, W) padded images.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
    maskrcnn_loss,
)
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import ResNet
from torchvision.ops import roi_align

from mocokit.nets.backbones import feature_dim

ASPECT_RATIOS = (0.5, 1.0, 2.0)
MASK_DIM = 256
"""Channels of the mask head (Detectron2 CONV_DIM)."""


def build_detector(
    backbone: nn.Module,
    *,
    num_classes: int,
    neck: Literal["c4", "fpn"],
    masks: bool,
    mean: Sequence[float],
    std: Sequence[float],
    anchor_sizes_px: Sequence[float] = (32, 64, 128, 256, 512),
    rpn_before_nms: tuple[int, int] = (12_000, 6000),
    rpn_after_nms: tuple[int, int] = (2000, 1000),
    regions_per_image: int = 512,
) -> GeneralizedRCNN:
    """Return a detector around `backbone`, all of whose layers are trained, BatchNorm included (FREEZE_AT 0).

    Args:
        backbone: A ResNet of torchvision's layout; the detector takes over its layers without copying them.
        num_classes: L.
        neck: "c4" or "fpn".
        masks: Also predict a mask for each object.
        mean: Mean of the pixels that the backbone was trained on, scaled to 0..1.
        std: Their standard deviation.
        anchor_sizes_px: Sides of the square anchors; for "fpn" one per level.
        rpn_before_nms: Proposals kept before non-maximum suppression, (in training, in testing).
        rpn_after_nms: Proposals kept after it, likewise.
        regions_per_image: Proposals sampled for the losses of the head.

    Raises:
        ValueError: The backbone is not a ResNet.

    """
    if not isinstance(backbone, ResNet):
        raise ValueError(f"run: detection needs a ResNet backbone, not {type(backbone).__name__}")
    proposals = _Proposals(tuple(anchor_sizes_px), rpn_before_nms, rpn_after_nms, regions_per_image)
    build = _build_c4 if neck == "c4" else _build_fpn
    detector = build(backbone, num_classes + 1, masks, proposals)
    detector.transform = PadAndNormalize(mean, std)
    _init_predictor(detector.roi_heads.box_predictor)
    return detector


class _Proposals(NamedTuple):
    """Settings of the region proposals; `build_detector` explains them."""

    anchor_sizes_px: tuple[float, ...]
    before_nms: tuple[int, int]
    after_nms: tuple[int, int]
    num_sampled: int


class PadAndNormalize(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Normalises images (3, h, w) in 0..1 and pads them to a batch (N, 3, H, W), H and W multiples of 32.

    Images and boxes are not resized: the loader has done that, as Detectron2's does (with Pillow, from uint8).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=list(mean), image_std=list(std))

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """Return both unchanged: torchvision would resize them here."""
        return image, target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        """Return the detections unchanged, in pixels of the input; `restore` scales them to the stored image."""
        return result

    def restore(self, result: Any, resized: list[tuple[int, int]], stored: list[tuple[int, int]]) -> Any:
        """Scale boxes to the stored images, and paste masks into them; sizes are (height, width)."""
        return super().postprocess(result, resized, stored)


class C4Trunk(nn.Module):
    """Layers up to layer3: maps images (N, 3, H, W) to (N, D/2, H/stride, W/stride)."""

    def __init__(self, resnet: ResNet) -> None:
        super().__init__()
        self.conv1 = resnet.conv1
        self.bn1 = resnet.bn1
        self.relu = resnet.relu
        self.maxpool = resnet.maxpool
        self.layer1 = resnet.layer1
        self.layer2 = resnet.layer2
        self.layer3 = resnet.layer3
        self.out_channels = feature_dim(resnet) // 2
        self.stride = 4 * resnet.conv1.stride[0] * (1 if isinstance(resnet.maxpool, nn.Identity) else 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map for the proposals and regions."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features: Tensor = self.layer3(self.layer2(self.layer1(stem)))
        return features


class AlignedRegions(nn.Module):
    """Cuts regions out of one feature map, as (R, channels, size, size).

    It uses `aligned=True`, as Detectron2's ROIAlignV2 does; torchvision's MultiScaleRoIAlign has no such option, so
    that its regions are half a cell off.
    """

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.size = size
        self.stride = stride

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], _image_sizes: Any) -> Tensor:
        """Cut out all regions; the signature is MultiScaleRoIAlign's."""
        rows: Tensor = roi_align(features["0"], boxes, self.size, spatial_scale=1 / self.stride, aligned=True)
        return rows


class Res5Head(nn.Sequential):
    """layer4 and one more BatchNorm (`Res5ROIHeadsExtraNorm`): maps (R, D/2, 14, 14) to (R, D, 7, 7).

    A pre-trained layer4 ends in unnormalised features, whose scale differs between supervised and unsupervised
    backbones. The extra BatchNorm removes that difference (MoCo v1 sec. 4.2).
    """

    def __init__(self, resnet: ResNet) -> None:
        super().__init__()
        self.layer4 = resnet.layer4
        self.norm = nn.BatchNorm2d(feature_dim(resnet))


class Res5RoIHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's RoIHeads, with boxes and masks predicted from the same features of a region.

    In training, layer4 runs once on all regions, and masks use its output on the foreground, as in Detectron2's
    Res5ROIHeads. torchvision's own forward would run layer4 a second time on the foreground alone, which has other
    BatchNorm statistics.
    """

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Any, targets: Any = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return (detections, {}) in testing, ([], losses) in training."""
        if not self.training:
            return self._detect(features, proposals, image_shapes), {}
        proposals, matched, labels, box_targets = self.select_training_samples(proposals, targets)
        rows = self.box_head(self.box_roi_pool(features, proposals, image_shapes))  # (R, D, 7, 7)
        class_loss, box_loss = fastrcnn_loss(*self.box_predictor(rows.mean(dim=(2, 3))), labels, box_targets)
        losses = {"loss_classifier": class_loss, "loss_box_reg": box_loss}
        if self.mask_predictor is not None:
            objects = [label > 0 for label in labels]
            losses["loss_mask"] = maskrcnn_loss(
                self.mask_predictor(rows[torch.cat(objects)]),
                [boxes[kept] for boxes, kept in zip(proposals, objects, strict=True)],
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [indices[kept] for indices, kept in zip(matched, objects, strict=True)],
            )
        return [], losses

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Any
    ) -> list[dict[str, Tensor]]:
        """Return the detections of each image; masks come from the final boxes, so layer4 runs on these again."""
        rows = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, shifts = self.box_predictor(rows.mean(dim=(2, 3)))
        boxes, scores, labels = self.postprocess_detections(logits, shifts, proposals, image_shapes)
        found = [
            {"boxes": box, "scores": score, "labels": label}
            for box, score, label in zip(boxes, scores, labels, strict=True)
        ]
        if self.mask_predictor is not None:
            rows = self.box_head(self.box_roi_pool(features, boxes, image_shapes))
            for row, masks in zip(found, maskrcnn_inference(self.mask_predictor(rows), labels), strict=True):
                row["masks"] = masks
        return found


def _build_c4(resnet: ResNet, num_labels: int, masks: bool, proposals: _Proposals) -> GeneralizedRCNN:
    """Return a detector with proposals from layer3 and layer4 as the head; `num_labels` includes the background."""
    trunk = C4Trunk(resnet)
    dim = feature_dim(resnet)
    anchors = AnchorGenerator((proposals.anchor_sizes_px,), (ASPECT_RATIOS,))
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(trunk.out_channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=_by_mode(proposals.before_nms),
        post_nms_top_n=_by_mode(proposals.after_nms),
        nms_thresh=0.7,
    )
    heads = Res5RoIHeads(
        AlignedRegions(14, trunk.stride),
        Res5Head(resnet),
        FastRCNNPredictor(dim, num_labels),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=proposals.num_sampled,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        mask_predictor=MaskRCNNPredictor(dim, MASK_DIM, num_labels) if masks else None,
    )
    return GeneralizedRCNN(trunk, rpn, heads, transform=nn.Identity())


def _by_mode(training_and_testing: tuple[int, int]) -> dict[str, int]:
    """Return the two numbers in torchvision's form."""
    return dict(zip(("training", "testing"), training_and_testing, strict=True))


def _build_fpn(resnet: ResNet, num_labels: int, masks: bool, proposals: _Proposals) -> GeneralizedRCNN:
    """Return a detector with a feature pyramid: BatchNorm in trunk and pyramid, none in the heads (moco issue #34)."""
    widths = [feature_dim(resnet) // 2**level for level in (3, 2, 1, 0)]
    layers = {f"layer{level + 1}": str(level) for level in range(4)}
    pyramid = BackboneWithFPN(resnet, layers, widths, out_channels=256, norm_layer=nn.BatchNorm2d)
    sizes = proposals.anchor_sizes_px
    if len(sizes) != len(layers) + 1:  # the fifth level is the max-pooled layer4
        raise ValueError(f"anchor_sizes_px={sizes}: a pyramid has 5 levels; give 5 sizes")
    anchors = AnchorGenerator(tuple((size,) for size in sizes), (ASPECT_RATIOS,) * len(sizes))
    detector = MaskRCNN if masks else FasterRCNN
    return detector(
        pyramid,
        num_labels,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=proposals.before_nms[0],
        rpn_pre_nms_top_n_test=proposals.before_nms[1],
        rpn_post_nms_top_n_train=proposals.after_nms[0],
        rpn_post_nms_top_n_test=proposals.after_nms[1],
        box_batch_size_per_image=proposals.num_sampled,
    )


def _init_predictor(predictor: nn.Module) -> None:
    """Draw small initial weights, as Detectron2's FastRCNNOutputLayers does; torchvision keeps nn.Linear's defaults."""
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
