"""Average precision by PASCAL VOC's 2007 rule.

Sources: Everingham et al. 2010 sec. 4.2 (11 recall levels; only the first match of an object counts; difficult objects
are ignored). The thresholds 0.50, 0.55 .. 0.95 and their mean are those of Detectron2's PascalVOCDetectionEvaluator,
which measured the MoCo papers' numbers. Detectron2 also rounds scores to 3 digits and box edges to 1 digit before it
compares them; nothing is rounded here.

Shapes: n objects and m detections of one image; M detections of one class over all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mocokit.detection.data_sets import AnnotatedImage

IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
RECALL_LEVELS = tuple(level / 10 for level in range(11))


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """Objects that a detector found in one image."""

    boxes: NDArray[np.float32]
    """(m, 4), in the pixels of the stored image, as in data_sets.py."""
    scores: NDArray[np.float32]
    """(m,) confidence, 0..1."""
    labels: NDArray[np.int64]
    """(m,) in 0..L-1"""
    masks: tuple[dict[str, object], ...] = ()
    """Mask of each object, as COCO run lengths; empty: no masks."""


def voc07_ap(truth: Sequence[AnnotatedImage], found: Sequence[Detections], *, num_classes: int) -> dict[str, float]:
    """Return AP50, AP (mean over IOU_THRESHOLDS) and AP75 in percent, each the mean over the classes that occur.

    A class occurs if it has an object that is not difficult.

    Raises:
        ValueError: No class occurs.

    """
    per_class = [
        class_average_precisions(truth, found, label=label)
        for label in range(num_classes)
        if any(((image.labels == label) & ~image.difficult).any() for image in truth)
    ]
    if not per_class:
        raise ValueError("test: no image has an object to find; check the annotations")
    means = 100 * np.mean(per_class, axis=0)  # (thresholds,)
    at = dict(zip(IOU_THRESHOLDS, means.tolist(), strict=True))
    return {"AP50": at[0.5], "AP": float(means.mean()), "AP75": at[0.75]}


def class_average_precisions(
    truth: Sequence[AnnotatedImage], found: Sequence[Detections], *, label: int
) -> NDArray[np.float64]:
    """Return the average precision (0..1) of one class at each of IOU_THRESHOLDS.

    The class must have an object that is not difficult. Detections are matched in order of falling score. A detection
    whose best overlap exceeds the threshold is right if it is the first match of its object, wrong if it is a later
    one, and ignored if the object is difficult. A detection without such an overlap is wrong.
    """
    num_objects = sum(int(((image.labels == label) & ~image.difficult).sum()) for image in truth)
    scores, overlaps, objects, difficult = _best_matches(truth, found, label)
    order = np.argsort(-scores, kind="stable")
    overlaps = overlaps[order]
    objects = objects[order]
    difficult = difficult[order]
    result = []
    for threshold in IOU_THRESHOLDS:
        # All (M,). `rows` is in order of falling score, so np.unique finds the first match of each object.
        matched = overlaps > threshold
        first = np.zeros(len(matched), np.bool_)
        rows = np.flatnonzero(matched)
        first[rows[np.unique(objects[rows], return_index=True)[1]]] = True
        right = np.cumsum(first & ~difficult)
        wrong = np.cumsum(~matched | (~first & ~difficult))
        result.append(eleven_point_average(right / num_objects, right / np.maximum(right + wrong, 1)))
    return np.array(result)


def _best_matches(
    truth: Sequence[AnnotatedImage], found: Sequence[Detections], label: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each of M detections: score, largest overlap, number of that object, and True if it is difficult."""
    scores = [np.empty(0)]
    overlaps = [np.empty(0)]
    objects = [np.empty(0, int)]
    difficult = [np.empty(0)]
    before = 0
    for image, detections in zip(truth, found, strict=True):
        wanted = image.labels == label
        own = detections.labels == label
        iou = overlap(detections.boxes[own].astype(np.float64), image.boxes[wanted].astype(np.float64))  # (m, n)
        padded = np.concatenate([iou, np.full((len(iou), 1), -1.0)], axis=1)  # argmax fails on images without objects
        scores.append(detections.scores[own])
        overlaps.append(padded.max(axis=1))
        objects.append(before + padded.argmax(axis=1))
        difficult.append(np.append(image.difficult[wanted], False)[padded.argmax(axis=1)])
        before += int(wanted.sum())
    return (
        np.concatenate(scores),
        np.concatenate(overlaps),
        np.concatenate(objects),
        np.concatenate(difficult).astype(np.bool_),
    )


def overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union (m, n) of boxes (m, 4) and (n, 4).

    VOC's code includes the right and lower edge pixels and adds 1 to each side; with our exclusive edges the areas are
    the same without it.
    """
    upper_left = np.maximum(a[:, None, :2], b[None, :, :2])
    lower_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(lower_right - upper_left, 0, None), axis=2)  # (m, n)
    area_a = np.prod(a[:, 2:] - a[:, :2], axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2], axis=1)
    iou: NDArray[np.float64] = shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-12)
    return iou


def eleven_point_average(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Return the mean over RECALL_LEVELS of the best precision at that recall or a higher one."""
    best = [precision[recall >= level].max(initial=0.0) for level in RECALL_LEVELS]
    return float(np.mean(best))
