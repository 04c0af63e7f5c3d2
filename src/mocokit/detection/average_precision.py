"""Average precision by PASCAL VOC's 2007 rule.

Sources: Everingham et al. 2010 sec. 4.2 (11 recall levels, the first match of an object counts, difficult objects are
neither asked for nor punished); the thresholds 0.50, 0.55 .. 0.95 and their mean are those of Detectron2's
PascalVOCDetectionEvaluator, which the MoCo papers' numbers come from (it also rounds scores to 3 digits and edges to
1 before it compares them; here nothing is rounded).
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
    """What a detector found in one image."""

    boxes: NDArray[np.float32]
    """(m, 4) like those of detection_sets.py."""
    scores: NDArray[np.float32]
    """(m,)"""
    labels: NDArray[np.int64]
    """(m,) in 0..L-1"""
    masks: tuple[dict[str, object], ...] = ()
    """Run lengths of each object's mask."""


def voc07_ap(truth: Sequence[AnnotatedImage], found: Sequence[Detections], *, num_classes: int) -> dict[str, float]:
    """AP50, AP (mean over IOU_THRESHOLDS) and AP75 in percent, each the mean over classes that occur.

    Raises:
        ValueError: No object to find.

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
    """Average precision (0..1) of one class at each of IOU_THRESHOLDS; the class has an object that is not difficult.

    Detections are taken by falling score. One whose best overlap passes the threshold is right when it is the first
    for its object, wrong when it comes later, and not counted when the object is difficult.
    """
    num_objects = sum(int(((image.labels == label) & ~image.difficult).sum()) for image in truth)
    scores, overlaps, objects, difficult = _best_matches(truth, found, label)
    order = np.argsort(-scores, kind="stable")
    overlaps = overlaps[order]
    objects = objects[order]
    difficult = difficult[order]
    result = []
    for threshold in IOU_THRESHOLDS:
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
    """For each of M detections: score, overlap with the object that it overlaps most, that object, is it difficult."""
    scores = [np.empty(0)]
    overlaps = [np.empty(0)]
    objects = [np.empty(0, int)]
    difficult = [np.empty(0)]
    before = 0
    for image, detections in zip(truth, found, strict=True):
        wanted = image.labels == label
        own = detections.labels == label
        iou = overlap(detections.boxes[own].astype(np.float64), image.boxes[wanted].astype(np.float64))  # (m, n)
        padded = np.concatenate([iou, np.full((len(iou), 1), -1.0)], axis=1)  # so that there is always a best one
        scores.append(detections.scores[own])
        overlaps.append(padded.max(axis=1))
        objects.append(before + padded.argmax(axis=1))
        difficult.append(np.append(image.difficult[wanted], False)[padded.argmax(axis=1)])
        before += int(wanted.sum())
    joined = (np.concatenate(parts) for parts in (scores, overlaps, objects, difficult))
    score, best, number, hard = joined
    return score, best, number, hard.astype(np.bool_)


def overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union (m, n) of boxes (m, 4) and (n, 4).

    With exclusive right and lower edges this is what VOC's code, which counts whole pixels, computes with its `+ 1`.
    """
    upper_left = np.maximum(a[:, None, :2], b[None, :, :2])
    lower_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(lower_right - upper_left, 0, None), axis=2)  # (m, n)
    area_a = np.prod(a[:, 2:] - a[:, :2], axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2], axis=1)
    iou: NDArray[np.float64] = shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-12)
    return iou


def eleven_point_average(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Mean over RECALL_LEVELS of the best precision at that recall or more."""
    best = [precision[recall >= level].max(initial=0.0) for level in RECALL_LEVELS]
    return float(np.mean(best))
