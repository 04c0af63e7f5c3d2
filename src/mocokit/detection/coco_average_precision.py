"""COCO's average precision, computed by the installed COCO library."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from mocokit.detection.average_precision import Detections
from mocokit.detection.coco_library import load_coco_library
from mocokit.detection.data_sets import DetectionSet

METRICS = {"AP": 0, "AP50": 1, "AP75": 2}
"""Metric -> its position in the statistics that a COCO library computes."""
KINDS = {"box": "bbox", "mask": "segm"}
"""Our name -> COCO's name of a kind of evaluation."""


def coco_ap(truth: DetectionSet, found: Sequence[Detections], *, library: str | None = None) -> dict[str, float]:
    """Return AP, AP50 and AP75 in percent, of the boxes and, if there are any, of the masks.

    Args:
        truth: Annotated images from COCO folders.
        found: Detections in each image, in the same order.
        library: "faster-coco-eval" or "pycocotools"; None: the first of the two that is installed.

    """
    assert truth.coco_file is not None, "a set of VOC folders has no COCO AP"
    kinds = list(KINDS) if any(detections.masks for detections in found) else ["box"]
    rows = coco_rows(truth, found)
    if not rows:  # pycocotools can't load an empty list
        return {f"{kind} {metric}": 0.0 for kind in kinds for metric in METRICS}
    coco = load_coco_library(library)
    result: dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # both libraries print to stdout
        annotations = coco.coco(str(truth.coco_file))
        detections = annotations.loadRes(rows)
        for kind in kinds:
            evaluation = coco.evaluation(annotations, detections, KINDS[kind])
            evaluation.params.imgIds = [image.image_id for image in truth.images]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            result |= {f"{kind} {name}": 100 * float(evaluation.stats[place]) for name, place in METRICS.items()}
    return result


def coco_rows(truth: DetectionSet, found: Sequence[Detections]) -> list[dict[str, object]]:
    """Return the detections in COCO's result format, where a box is (x, y, width, height)."""
    rows: list[dict[str, object]] = []
    for image, detections in zip(truth.images, found, strict=True):
        corners = detections.boxes.astype(np.float64)
        sizes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        for number, (box, score, label) in enumerate(zip(sizes, detections.scores, detections.labels, strict=True)):
            row: dict[str, object] = {
                "image_id": image.image_id,
                "category_id": truth.category_ids[label],
                "bbox": box.tolist(),
                "score": float(score),
            }
            if detections.masks:
                row["segmentation"] = detections.masks[number]
            rows.append(row)
    return rows
