"""COCO AP, checked against pycocotools, which the package does not call if faster-coco-eval is installed."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mocokit.detection.average_precision import Detections
from mocokit.detection.coco_average_precision import coco_ap, coco_rows
from mocokit.detection.coco_library import load_coco_library
from mocokit.detection.data_sets import DetectionSet, open_coco

pycocotools_coco = pytest.importorskip("pycocotools.coco")
SIZE = 64


def _polygon(box: NDArray[np.float32]) -> list[list[float]]:
    x1, y1, x2, y2 = (float(edge) for edge in box)
    return [[x1, y1, x2, y1, x2, y2]]  # a triangle: box and mask differ


def _random_boxes(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    corner = rng.integers(0, 30, (count, 2))
    return np.concatenate([corner, corner + rng.integers(8, 34, (count, 2))], axis=1).astype(np.float32)


@pytest.fixture
def crowded(tmp_path: Path) -> DetectionSet:
    """8 images of 3 classes, some objects of which are crowds."""
    rng = np.random.default_rng(0)
    annotations = list[dict[str, Any]]()
    for image_id in range(1, 9):
        for box in _random_boxes(rng, 4):
            size = (box[2:] - box[:2]).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice([2, 5, 9])),
                    "bbox": [*box[:2].tolist(), *size],
                    "area": size[0] * size[1] / 2,
                    "segmentation": _polygon(box),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    content = {
        "info": {},
        "annotations": annotations,
        "categories": [{"id": n, "name": f"class {n}"} for n in (2, 5, 9)],
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": SIZE, "height": SIZE} for n in range(1, 9)],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val.json").write_text(json.dumps(content))
    return open_coco(tmp_path, "val")


def _noisy(truth: DetectionSet, *, noise_px: float) -> list[Detections]:
    rng = np.random.default_rng(1)
    mask = load_coco_library("pycocotools").mask
    found = list[Detections]()
    for image in truth.images:
        boxes = np.concatenate([image.boxes, _random_boxes(rng, 2)])
        boxes = (boxes + rng.normal(0, noise_px, boxes.shape)).astype(np.float32) if noise_px else boxes
        labels = np.concatenate([image.labels, rng.integers(0, 3, 2)])
        drawn = [mask.frPyObjects(_polygon(box), SIZE, SIZE)[0] for box in boxes]
        scores = np.concatenate([rng.uniform(0.5, 1, len(image.boxes)), rng.uniform(0, 0.5, 2)])
        found.append(Detections(boxes=boxes, scores=scores.astype(np.float32), labels=labels, masks=tuple(drawn)))
    return found


def _by_pycocotools(truth: DetectionSet, rows: list[dict[str, object]], kind: str) -> list[float]:
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        annotations = pycocotools_coco.COCO(str(truth.coco_file))
        evaluation = COCOeval(annotations, annotations.loadRes(rows), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * float(value) for value in evaluation.stats[:3]]


@pytest.mark.parametrize("library", ["faster-coco-eval", "pycocotools"])
def test_both_libraries_give_what_pycocotools_gives(crowded: DetectionSet, library: str) -> None:
    found = _noisy(crowded, noise_px=1.5)
    ours = coco_ap(crowded, found, library=library)
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        want = _by_pycocotools(crowded, coco_rows(crowded, found), kind)
        assert [ours[f"{name} {metric}"] for metric in ("AP", "AP50", "AP75")] == pytest.approx(want, abs=1e-9)
        assert 5 < want[0] < 95
    assert ours["box AP"] != pytest.approx(ours["mask AP"])


def test_exact_detections_score_100_and_no_detections_score_0(crowded: DetectionSet) -> None:
    exact = coco_ap(crowded, _noisy(crowded, noise_px=0))
    assert exact == pytest.approx(dict.fromkeys(exact, 100.0))
    empty = Detections(boxes=np.empty((0, 4), np.float32), scores=np.empty(0, np.float32), labels=np.empty(0, np.int64))
    assert coco_ap(crowded, [empty] * 8) == {"box AP": 0, "box AP50": 0, "box AP75": 0}


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("faster_coco_eval", "pycocotools", "pycocotools.coco"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"pip install 'mocokit\[detection\]'"):
        load_coco_library()
