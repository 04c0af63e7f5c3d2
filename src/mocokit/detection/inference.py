"""Run a trained detector on a set of images, and measure its average precision.

Shapes: m detections of one image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mocokit.data.loading.loader import build_loader
from mocokit.detection.average_precision import Detections, voc07_ap
from mocokit.detection.batches import DetectionViews
from mocokit.detection.coco_average_precision import coco_ap
from mocokit.detection.coco_library import load_coco_library
from mocokit.detection.data_sets import DetectionSet
from mocokit.detection.recipes import DetectionRecipe


@torch.no_grad()
def detect(
    detector: nn.Module, images: DetectionSet, recipe: DetectionRecipe, *, device: torch.device, num_workers: int = 0
) -> list[Detections]:
    """Return the detections in each image, in pixels of the stored image.

    Images go through one at a time, as in Detectron2's test. The detector is in eval mode and gets its mode back.
    """
    views = DetectionViews(
        images=images.images,
        short_sides_px=(recipe.test_short_side_px,),
        max_long_side_px=recipe.max_long_side_px,
        mirror=False,
        masks=False,
        seed=0,
        value_ranges=images.value_ranges,
    )
    loader = build_loader(views, [[(0, index)] for index in range(len(images.images))], num_workers=num_workers)
    was_training = detector.training
    detector.eval()
    found = [_detect_one(detector, images, batch[0].number, batch[0].pixels, device) for batch in loader]
    detector.train(was_training)
    return found


def _detect_one(
    detector: nn.Module, images: DetectionSet, index: int, pixels: Tensor, device: torch.device
) -> Detections:
    result = detector([pixels.to(device).float() / 255])
    stored = images.images[index].height, images.images[index].width
    row = detector.transform.restore(result, [tuple(pixels.shape[1:])], [stored])[0]  # type: ignore[operator, union-attr]
    return Detections(
        boxes=row["boxes"].cpu().numpy(),
        scores=row["scores"].cpu().numpy(),
        labels=row["labels"].cpu().numpy() - 1,  # torchvision's 0 is the background
        masks=_pack_masks(row["masks"]) if "masks" in row else (),
    )


def _pack_masks(masks: Tensor) -> tuple[dict[str, object], ...]:
    """Pack masks (m, 1, H, W), cut at 0.5, as run lengths; the unpacked masks of a set would not fit in memory."""
    mask = load_coco_library().mask
    drawn = (masks[:, 0] > 0.5).to(torch.uint8).cpu().numpy()
    return tuple(mask.encode(np.asfortranarray(one)) for one in drawn)


def average_precision(images: DetectionSet, found: Sequence[Detections]) -> dict[str, float]:
    """Return the metrics in percent: COCO's if the set has a COCO file, else VOC07's."""
    if images.coco_file is not None:
        return coco_ap(images, found)
    return voc07_ap(images.images, found, num_classes=len(images.class_names))
