"""VOC's rule, checked against a case worked out by hand and against counting pixels."""

import numpy as np
import pytest

from mocokit.detection.average_precision import IOU_THRESHOLDS, Detections, class_average_precisions, voc07_ap
from mocokit.detection.data_sets import AnnotatedImage
from tests.oracles import VocBox, voc07_ap_loop


def _image(boxes: list[list[float]], labels: list[int], difficult: list[bool] | None = None) -> AnnotatedImage:
    from pathlib import Path

    return AnnotatedImage(
        path=Path("none.jpg"),
        image_id=0,
        width=100,
        height=100,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        difficult=np.array(difficult or [False] * len(labels), np.bool_),
    )


def _found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float32),
        labels=np.array(labels, np.int64),
    )


def test_average_precision_equals_a_case_worked_out_by_hand() -> None:
    """Two classes on two images.

    Class 0 has 2 objects. By score: 0.9 overlaps object A by 80/100 = 0.8 (right up to threshold 0.75), 0.8 is A's
    second (wrong), 0.7 overlaps B by 1 (right), 0.6 hits the difficult object (not counted). At 0.50: precision 1 at
    recall 1/2, 2/3 at recall 1; so levels 0..0.5 give 1 and 0.6..1 give 2/3: (6 + 5 * 2/3) / 11 = 28/33. So at 0.55
    .. 0.75. At 0.80 (not above 0.8), 0.85, 0.90 and 0.95: wrong; 0.8 is A exactly and right now; 0.7 right: precision
    0, 1/2, 2/3 at recall 0, 1/2, 1: all eleven levels give 2/3.
    Class 1 has 1 object and no detection: 0.
    """
    truth = [
        _image([[0, 0, 10, 10], [50, 50, 90, 90], [20, 20, 40, 40]], [0, 1, 0], [False, False, True]),
        _image([[5, 5, 25, 25]], [0]),
    ]
    found = [
        _found([[0, 0, 10, 8], [0, 0, 10, 10], [20, 20, 40, 40]], [0.9, 0.8, 0.6], [0, 0, 0]),
        _found([[5, 5, 25, 25]], [0.7], [0]),
    ]
    at_low = 28 / 33
    at_high = 2 / 3
    assert class_average_precisions(truth, found, label=0).tolist() == pytest.approx([at_low] * 6 + [at_high] * 4)
    assert class_average_precisions(truth, found, label=1).tolist() == [0] * 10
    assert voc07_ap(truth, found, num_classes=3) == pytest.approx(  # class 2 does not occur, and does not count
        {"AP50": 50 * at_low, "AP": 50 * (0.6 * at_low + 0.4 * at_high), "AP75": 50 * at_low}
    )


def test_exact_detections_score_100_and_no_detections_score_0() -> None:
    truth = [_image([[0, 0, 10, 10], [50, 50, 90, 90]], [0, 1]), _image([], []), _image([[5, 5, 9, 9]], [1])]
    exact = [
        Detections(boxes=image.boxes, scores=np.ones(len(image.boxes), np.float32), labels=image.labels)
        for image in truth
    ]
    assert voc07_ap(truth, exact, num_classes=2) == {"AP50": 100, "AP": 100, "AP75": 100}
    nothing = [_found([], [], [])] * 3
    assert voc07_ap(truth, nothing, num_classes=2) == {"AP50": 0, "AP": 0, "AP75": 0}
    with pytest.raises(ValueError, match="no image has an object to find"):
        voc07_ap([_image([[0, 0, 9, 9]], [0], [True])], [nothing[0]], num_classes=1)


@pytest.mark.parametrize("seed", range(6))
def test_random_cases_agree_with_counting_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth_rows: list[list[tuple[VocBox, bool]]] = []
    found_rows: list[tuple[int, float, VocBox]] = []
    for number in range(5):
        boxes = [_random_box(rng) for _ in range(rng.integers(0, 5))]
        truth_rows.append([(box, bool(rng.random() < 0.3)) for box in boxes])
        near = [_moved(box, rng) for box in boxes for _ in range(rng.integers(0, 4))]
        found_rows += [(number, float(rng.random()), box) for box in [*near, _random_box(rng)]]
    truth = [
        _image([_exclusive(box) for box, _ in rows], [3] * len(rows), [hard for _, hard in rows]) for rows in truth_rows
    ]
    found = [
        _found(
            [_exclusive(box) for image, _, box in found_rows if image == number],
            [score for image, score, _ in found_rows if image == number],
            [3 for image, *_ in found_rows if image == number],
        )
        for number in range(5)
    ]
    want = [voc07_ap_loop(truth_rows, found_rows, threshold) for threshold in IOU_THRESHOLDS]
    assert class_average_precisions(truth, found, label=3).tolist() == pytest.approx(want)
    assert 0 < want[0] < 1


def _random_box(rng: np.random.Generator) -> VocBox:
    x, y, width, height = (int(value) for value in rng.integers((1, 1, 8, 8), (40, 40, 30, 30)))
    return (x, y, x + width, y + height)


def _moved(box: VocBox, rng: np.random.Generator) -> VocBox:
    a, b, c, d = (int(edge + shift) for edge, shift in zip(box, rng.integers(-3, 4, 4), strict=True))
    return (max(1, a), max(1, b), max(c, 2), max(d, 2))


def _exclusive(box: VocBox) -> list[float]:
    """Convert a box from VOC's pixels, counted from 1 with inclusive edges, to ours."""
    return [box[0] - 1, box[1] - 1, box[2], box[3]]
