"""Trials, from a backbone to the table of means and deviations."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mocokit.cli import main
from mocokit.detection import trials as detection_trials
from mocokit.detection.data_sets import DetectionSet, open_coco, open_voc
from mocokit.detection.inference import average_precision, detect
from mocokit.detection.recipes import COCO_C4_2X, COCO_FPN_1X, VOC_C4_24K, DetectionRecipe
from mocokit.detection.trials import TrialPlan, initial_detector, mean_and_std, run_trials
from mocokit.engine.backbone_file import BackboneCard, load_backbone, save_backbone
from mocokit.nets.backbones import build_backbone

CARD = BackboneCard(
    arch="resnet10_w16",
    stem="imagenet",
    image_size=64,
    eval_crop_ratio=1.0,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    step=9,
)


def _small(recipe: DetectionRecipe, iterations: int) -> DetectionRecipe:
    """Return the recipe at 64 px with few regions."""
    return replace(
        recipe.rescaled(2).at_short_side(64).shortened(iterations),
        rpn_before_nms=(60, 60),
        rpn_after_nms=(20, 20),
        regions_per_image=8,
        precise_bn_iterations=2,
    )


def _plan(images: DetectionSet, recipe: DetectionRecipe, **changes: Any) -> TrialPlan:
    plan = TrialPlan(
        run="random",
        arch="resnet10_w16",
        train=images.for_training(),
        test=images,
        recipe=recipe,
        seed=0,
        device_name="cpu",
        num_workers=0,
    )
    return replace(plan, **changes)


@pytest.fixture
def voc(pasted_voc: Path) -> DetectionSet:
    return open_voc(pasted_voc, ["2007_trainval"])


def _write_coco(root: Path, voc: DetectionSet) -> None:
    """Write the same pictures as COCO folders; the outline of an object is its ellipse."""
    annotations = list[dict[str, object]]()
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    for number, image in enumerate(voc.images):
        Image.open(image.path).save(root / "val2017" / f"{number}.jpg", quality=95)
        for (x1, y1, x2, y2), label in zip(image.boxes.tolist(), image.labels.tolist(), strict=True):
            outline = np.stack([x1 + x2 + (x2 - x1) * np.cos(angles), y1 + y2 + (y2 - y1) * np.sin(angles)], axis=1) / 2
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 10 * label + 1,
                    "iscrowd": 0,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "segmentation": [outline.ravel().tolist()],
                }
            )
    content = {
        "info": {},
        "annotations": annotations,
        "categories": [{"id": 10 * label + 1, "name": name} for label, name in enumerate(voc.class_names)],
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": image.width, "height": image.height}
            for number, image in enumerate(voc.images)
        ],
    }
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))


def test_a_trial_starts_from_the_weights_of_the_run(voc: DetectionSet, tmp_path: Path) -> None:
    torch.manual_seed(5)
    save_backbone(tmp_path / "backbone.safetensors", build_backbone("resnet10_w16"), CARD)
    plan = _plan(voc, _small(VOC_C4_24K, 2), run=str(tmp_path))
    detectors: list[Any] = [initial_detector(plan, trial) for trial in (0, 1)]
    want = load_backbone(tmp_path).backbone.state_dict()
    for detector in detectors:
        state = {**detector.backbone.state_dict(), **detector.roi_heads.box_head.state_dict()}
        assert all(torch.equal(state[name], value) for name, value in want.items())
        assert detector.transform.image_mean == [0.4, 0.5, 0.6]
    heads = [detector.rpn.head.cls_logits.weight for detector in detectors]
    assert not torch.equal(*heads)  # each trial has its own
    random: list[Any] = [initial_detector(_plan(voc, plan.recipe), trial) for trial in (0, 0, 1)]
    first, again, other = (detector.backbone.conv1.weight for detector in random)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_finished_trials_are_not_repeated(voc: DetectionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(voc, _small(VOC_C4_24K, 2), judge_training_images=True)
    seen = list[tuple[int, int]]()

    def look(trial: int, done: int, _loss: float) -> None:
        seen.append((trial, done))
        if seen[-1] == (1, 1) and len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(plan, num_trials=2, out=tmp_path, on_iteration=look)
    trials = run_trials(plan, num_trials=2, out=tmp_path, on_iteration=look)
    assert seen == [(0, 1), (0, 2), (1, 1), (1, 1), (1, 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.json", "trial_0.json", "trial_1.json"]
    assert json.loads((tmp_path / "trial_1.json").read_text())["metrics"] == trials[1].metrics
    assert trials[0].train_metrics == trials[0].metrics  # the same images here
    monkeypatch.setattr(detection_trials, "train_detector", None)
    assert run_trials(plan, num_trials=2, out=tmp_path) == trials
    with pytest.raises(ValueError, match=r"holds trials of other settings \(see settings\.json\)"):
        run_trials(replace(plan, seed=1), num_trials=2, out=tmp_path)


def test_a_failed_call_does_not_reserve_the_folder(voc: DetectionSet, tmp_path: Path) -> None:
    plan = _plan(voc, _small(VOC_C4_24K, 1))
    with pytest.raises(ValueError, match="run=/nowhere: no such run folder or backbone file"):
        run_trials(replace(plan, run="/nowhere"), num_trials=1, out=tmp_path)
    with pytest.raises(ValueError, match="trials=0: must be at least 1"):
        run_trials(plan, num_trials=0, out=tmp_path)
    assert len(run_trials(plan, num_trials=1, out=tmp_path)) == 1


def test_mean_and_standard_deviation_are_those_of_the_sample() -> None:
    trials = [
        detection_trials.Trial(
            trial=n, metrics={"AP50": value, "AP": 7.0}, train_metrics={}, last_loss=0.0, seconds=1.0
        )
        for n, value in enumerate((81.0, 82.5, 82.8, 81.9, 82.2))
    ]
    table = mean_and_std(trials)
    assert table["AP50"] == pytest.approx(
        (82.08, math.sqrt(sum((v - 82.08) ** 2 for v in (81, 82.5, 82.8, 81.9, 82.2)) / 4))
    )
    assert table["AP"] == (7.0, 0.0)
    assert math.isnan(mean_and_std(trials[:1])["AP"][1])


@pytest.mark.parametrize("recipe", [COCO_C4_2X, COCO_FPN_1X])
def test_masks_are_trained_and_evaluated_on_coco_folders(
    voc: DetectionSet, tmp_path: Path, recipe: DetectionRecipe
) -> None:
    _write_coco(tmp_path / "coco", voc)
    coco = open_coco(tmp_path / "coco", "val2017")
    coco = replace(coco, images=coco.images[:2])
    plan = _plan(coco, _small(recipe, 2))
    (trial,) = run_trials(plan, num_trials=1, out=tmp_path / "out")
    assert set(trial.metrics) >= {"box AP", "box AP50", "box AP75"}
    detector: Any = initial_detector(plan, 0)
    detector.roi_heads.score_thresh = 0.0
    detector.roi_heads.detections_per_img = 5
    found = detect(detector, coco, plan.recipe, device=torch.device("cpu"))
    assert all(len(image.masks) == len(image.boxes) > 0 for image in found)
    assert set(average_precision(coco, found)) == {f"{k} {m}" for k in ("box", "mask") for m in ("AP", "AP50", "AP75")}


def test_detections_are_in_pixels_of_the_stored_image(voc: DetectionSet) -> None:
    """A box that covers the resized image covers the stored one after scaling."""
    recipe = replace(_small(VOC_C4_24K, 2), test_short_side_px=48)

    class FindsAll(torch.nn.Module):
        """Detects one object as large as the input image."""

        transform = initial_detector(_plan(voc, recipe), 0).transform.eval()

        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            box = torch.tensor([[0.0, 0.0, images[0].shape[2], images[0].shape[1]]])
            return [{"boxes": box, "scores": torch.ones(1), "labels": torch.tensor([2])}]

    found = detect(FindsAll(), voc, recipe, device=torch.device("cpu"))
    assert [image.boxes.tolist() for image in found] == [[[0, 0, 96, 96]]] * 6
    assert [image.labels.tolist() for image in found] == [[1]] * 6


def test_detect_from_the_command_line(pasted_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "detect",
        "random",
        "--data",
        str(pasted_voc),
        "--out",
        str(tmp_path),
        "--train",
        "2007_trainval",
        "--test",
        "2007_trainval",
        "--arch",
        "resnet10_w16",
        "--batch",
        "2",
        "--iterations",
        "2",
        "--short-side",
        "48",
        "--regions",
        "8",
        "--trials",
        "2",
        "--workers",
        "0",
        "--device",
        "cpu",
    ]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "voc-c4-24k: 6 training and 6 test images of 2 classes"
    assert lines[1] == "2 iterations of 2 images, lr 0.0025, steps at 2, 2"
    table = [line.split() for line in lines if line.startswith(("trial  ", "1  ", "2  ", "mean", "std"))]
    assert [row[0] for row in table] == ["trial", "1", "2", "mean", "std"]
    assert table[0][1:] == ["AP50", "AP", "AP75"]
    values = [[float(cell) for cell in row[1:]] for row in table[1:]]
    assert values[2][0] == pytest.approx(statistics.fmean(row[0] for row in values[:2]), abs=0.1)


def test_mistakes_on_the_command_line_are_one_line(pasted_voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["detect", "random", "--data", str(pasted_voc), "--out", "nowhere"]
    for flags, message in (
        ([], "2012_trainval: "),
        (["--recipe", "voc"], "recipe='voc': unknown"),
        (["--layout", "coco"], "instances_train2017.json is missing"),
        (["--batch", "0"], "batch=0: must be at least 1"),
    ):
        assert main([*start, *flags]) == 1
        printed = capsys.readouterr().err
        assert message in printed or "ImageSets/Main/trainval.txt is missing" in printed
        assert len(printed.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_few_hundred_iterations_memorise_the_training_images(voc: DetectionSet, tmp_path: Path) -> None:
    """From random weights, about a minute on one core; before training, AP50 is below 20."""
    recipe = replace(
        VOC_C4_24K.rescaled(2).at_short_side(128).shortened(400),
        lr=0.02,
        warmup_iterations=20,
        rpn_before_nms=(200, 200),
        rpn_after_nms=(64, 64),
        regions_per_image=16,
        precise_bn_iterations=30,
    )
    plan = _plan(voc, recipe)
    before = average_precision(voc, detect(initial_detector(plan, 0), voc, recipe, device=torch.device("cpu")))
    (trial,) = run_trials(plan, num_trials=1, out=tmp_path)
    assert before["AP50"] < 20
    assert trial.metrics["AP50"] > 90
    assert trial.metrics["AP50"] >= trial.metrics["AP75"]
