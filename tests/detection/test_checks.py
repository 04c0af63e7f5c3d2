"""Flaws of detection data are told at the start, and trials belong to their weights, images and annotations."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mocokit.cli import main
from mocokit.detection import trials
from mocokit.detection.checks import annotations_digest, identify_images, require_image_files
from mocokit.detection.data_sets import DetectionSet, open_coco, open_voc
from mocokit.detection.image_files import stored_size
from mocokit.detection.recipes import VOC_C4_24K
from mocokit.detection.trials import TrialPlan, run_trials
from mocokit.engine.backbone_file import BackboneCard, save_backbone
from mocokit.nets.backbones import build_backbone


@pytest.fixture
def voc(pasted_voc: Path, tmp_path: Path) -> Path:
    """A copy of the small VOC folders that a test may damage."""
    return Path(shutil.copytree(pasted_voc, tmp_path / "voc"))


def _open(root: Path) -> DetectionSet:
    return open_voc(root, ["2007_trainval"])


def _annotations(root: Path) -> list[Path]:
    return sorted((root / "VOC2007" / "Annotations").iterdir())


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("size", ["0", "", None])
def test_a_size_of_zero_or_none_is_read_from_the_image(voc: Path, size: str | None) -> None:
    before = _open(voc)
    for path in _annotations(voc)[:2]:
        _edit(
            path,
            "<width>96</width><height>96</height>",
            f"<width>{size}</width><height>{size}</height>" if size else "",
        )
    now = _open(voc)
    assert [image.boxes.tolist() for image in now.images] == [image.boxes.tolist() for image in before.images]
    assert {(image.width, image.height) for image in now.images} == {(96, 96)}
    names = ", ".join(path.name for path in _annotations(voc)[:2])
    assert now.notes == (f"2 annotations have no image size; it is read from the images ({names})",)
    assert before.notes == ()


def test_a_coco_image_without_a_size_gets_it_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val").mkdir()
    Image.new("RGB", (50, 40)).save(tmp_path / "val" / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 0}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 100, 5]}],
    }
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    found = open_coco(tmp_path, "val")
    assert found.images[0].boxes.tolist() == [[10, 10, 50, 15]]
    assert found.notes == (
        "1 annotations have no image size; it is read from the images (a.jpg)",
        "1 boxes reach outside their image; they are clipped (a.jpg)",
    )


def test_the_stored_size_is_that_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.new("RGB", (50, 40)).save(tmp_path / "a.jpg", exif=exif)
    assert stored_size(tmp_path / "a.jpg") == (40, 50)
    (tmp_path / "b.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"b\.jpg: can't be read"):
        stored_size(tmp_path / "b.jpg")


def test_boxes_outside_and_without_area_are_told(voc: Path) -> None:
    image = _open(voc).images[0]
    box = image.boxes[0].astype(int)
    path = _annotations(voc)[0]
    _edit(path, f"<xmax>{box[2]}</xmax>", "<xmax>500</xmax>")
    (clipped,) = _open(voc).notes
    assert clipped == f"1 boxes reach outside their image; they are clipped ({image.path.name})"
    _edit(path, f"<xmin>{box[0] + 1}</xmin>", "<xmin>400</xmin>")
    (dropped,) = _open(voc).notes
    assert dropped == f"1 boxes have no area inside their image; they are left out ({image.path.name})"


def test_missing_and_unfit_images_are_counted_at_the_start(voc: Path) -> None:
    images = _open(voc)
    require_image_files(images)
    Image.new("RGB", (10, 20)).save(images.images[0].path)
    images.images[1].path.write_text("no image")
    with pytest.raises(ValueError, match=r"has 10x20 pixels, its annotation says 96x96.*; 1 more of 6 images have"):
        require_image_files(images)
    images.images[2].path.unlink()
    with pytest.raises(ValueError, match=rf"1 of 6 image files are missing \({images.images[2].path}\)"):
        require_image_files(images)
    _annotations(voc)[3].unlink()
    with pytest.raises(ValueError, match=r"1 of 6 annotations \(.*\.xml\) are missing"):
        _open(voc)


def test_the_identity_of_a_set_follows_its_content_not_its_place(voc: Path, tmp_path: Path) -> None:
    before = _open(voc)
    moved = _open(Path(shutil.copytree(voc, tmp_path / "elsewhere" / "voc")))
    for path in voc.rglob("*"):
        os.utime(path, (10**9, 10**9))
    for one in (moved, _open(voc)):
        assert identify_images(one).digest == identify_images(before).digest
        assert annotations_digest(one) == annotations_digest(before)
    fewer = replace(before, images=before.images[:-1])
    assert identify_images(fewer).digest != identify_images(before).digest
    assert annotations_digest(fewer) != annotations_digest(before)
    image = before.images[0]
    shifted = replace(before, images=(replace(image, boxes=image.boxes + np.float32(1)), *before.images[1:]))
    assert annotations_digest(shifted) != annotations_digest(before)


def _plan(images: DetectionSet, run: str) -> TrialPlan:
    recipe = replace(
        VOC_C4_24K.rescaled(2).at_short_side(64).shortened(1),
        rpn_before_nms=(60, 60),
        rpn_after_nms=(20, 20),
        regions_per_image=8,
        precise_bn_iterations=2,
    )
    return TrialPlan(
        run=run,
        arch="resnet10_w16",
        train=images.for_training(),
        test=images,
        recipe=recipe,
        seed=0,
        device_name="cpu",
        num_workers=0,
    )


def _save_weights(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    card = BackboneCard(
        arch="resnet10_w16",
        stem="imagenet",
        image_size=64,
        eval_crop_ratio=1.0,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        step=9,
    )
    save_backbone(path, build_backbone("resnet10_w16"), card)


def test_trials_of_other_weights_images_or_annotations_are_not_reused(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "net.safetensors"
    _save_weights(file, 0)
    out = tmp_path / "out"
    (trial,) = run_trials(_plan(_open(voc), str(file)), num_trials=1, out=out)
    assert "test: 6 of 6 test images (100 %) are also training images" in caplog.text
    monkeypatch.setattr(trials, "train_detector", None)  # so nothing is trained again
    _save_weights(tmp_path / "moved.safetensors", 0)
    assert run_trials(_plan(_open(voc), str(tmp_path / "moved.safetensors")), num_trials=1, out=out) == [trial]
    _save_weights(file, 1)
    with pytest.raises(ValueError, match=r"holds trials of other settings \(see settings\.json\): weights; choose"):
        run_trials(_plan(_open(voc), str(file)), num_trials=1, out=out)
    _save_weights(file, 0)
    images = _open(voc)
    Image.open(images.images[0].path).rotate(180).save(images.images[0].path)
    with pytest.raises(ValueError, match=r"settings\.json\): test_images, train_images; choose"):
        run_trials(_plan(images, str(file)), num_trials=1, out=out)


def test_trials_of_an_older_version_are_continued_with_a_warning(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = _plan(_open(voc), "random")
    done = run_trials(plan, num_trials=1, out=tmp_path / "out")
    path = tmp_path / "out" / "settings.json"
    settings = json.loads(path.read_text())
    new = {"weights", "train_images", "test_images", "train_annotations", "test_annotations"}
    path.write_text(json.dumps({name: value for name, value in settings.items() if name not in new}))
    monkeypatch.setattr(trials, "train_detector", None)
    with caplog.at_level(logging.WARNING, logger="mocokit"):
        assert run_trials(plan, num_trials=1, out=tmp_path / "out") == done
    assert "did not record their weights and images" in caplog.text
    with pytest.raises(ValueError, match="other settings"):
        run_trials(replace(plan, seed=1), num_trials=1, out=tmp_path / "out")


def test_detect_of_no_such_run_says_so_before_it_reads_annotations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", str(tmp_path / "nope"), "--data", "/nowhere", "--out", str(tmp_path / "out")]) == 1
    assert f"run={tmp_path / 'nope'}: no such run folder or backbone file" in capsys.readouterr().err
