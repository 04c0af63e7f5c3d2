"""Reading VOC and COCO folders as they are unpacked."""

import json
from pathlib import Path

import pytest

from mocokit.detection.data_sets import open_coco, open_voc
from tests.pasted_objects import write_annotation


def _voc(root: Path, split: str, objects: dict[str, list[tuple[str, tuple[int, int, int, int], bool]]]) -> None:
    year, name = split.split("_")
    for part in ("Annotations", "ImageSets/Main"):
        (root / f"VOC{year}" / part).mkdir(parents=True, exist_ok=True)
    (root / f"VOC{year}" / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(objects))
    for image_id, rows in objects.items():
        write_annotation(
            root / f"VOC{year}" / "Annotations" / f"{image_id}.xml",
            (50, 40),
            [row[:2] for row in rows],
            difficult=[row[2] for row in rows],
        )


def test_voc_pixels_are_counted_from_one_and_the_last_is_included(tmp_path: Path) -> None:
    _voc(tmp_path, "2007_test", {"000001": []})
    (tmp_path / "VOC2007/Annotations/000001.xml").write_text(
        "<annotation><size><width>50</width><height>40</height><depth>3</depth></size><object><name>dog</name>"
        "<pose>Left</pose><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>50</xmax><ymax>40</ymax>"
        "</bndbox><part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "</part></object></annotation>"
    )
    (image,) = open_voc(tmp_path, ["2007_test"]).images
    assert image.boxes.tolist() == [[0, 0, 50, 40]]  # the whole image, and no box for its part
    assert image.path == tmp_path / "VOC2007" / "JPEGImages" / "000001.jpg"


def test_lists_of_several_years_are_one_set(tmp_path: Path) -> None:
    _voc(tmp_path / "VOCdevkit", "2007_trainval", {"000001": [("dog", (1, 2, 30, 20), False)]})
    _voc(tmp_path / "VOCdevkit", "2012_trainval", {"2012_1": [("cat", (5, 5, 9, 9), False)], "2012_2": []})
    found = open_voc(tmp_path, ["2007_trainval", "2012_trainval"])
    assert found.class_names == ("cat", "dog")
    assert [image.labels.tolist() for image in found.images] == [[1], [0], []]
    assert [image.image_id for image in found.for_training().images] == ["000001", "2012_1"]


def test_difficult_objects_are_trained_on_unless_asked_otherwise(tmp_path: Path) -> None:
    objects = {"1": [("dog", (1, 2, 30, 20), False), ("dog", (3, 3, 9, 9), True)], "2": [("dog", (0, 0, 9, 9), True)]}
    _voc(tmp_path, "2007_trainval", objects)
    found = open_voc(tmp_path, ["2007_trainval"])
    assert [image.difficult.tolist() for image in found.images] == [[False, True], [True]]
    assert [len(image.boxes) for image in found.for_training().images] == [2, 1]
    assert [len(image.boxes) for image in found.for_training(skip_difficult=True).images] == [1]


def test_mistakes_in_voc_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test\.txt is missing; give the folder that holds VOC2007"):
        open_voc(tmp_path, ["2007_test"])
    _voc(tmp_path, "2007_test", {"1": [("dog", (1, 2, 30, 20), False)], "2": []})
    with pytest.raises(ValueError, match=r"classes \['dog'\] are not those of the training images"):
        open_voc(tmp_path, ["2007_test"], class_names=["cat"])
    (tmp_path / "VOC2007/Annotations/2.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"2\.xml: not a VOC annotation"):
        open_voc(tmp_path, ["2007_test"])
    _voc(tmp_path, "2007_test", {"1": []})
    with pytest.raises(ValueError, match="no training image has an object"):
        open_voc(tmp_path, ["2007_test"]).for_training()


def _coco(root: Path, **changes: object) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    square = [[10, 5, 30, 5, 30, 25, 10, 25]]
    content = {
        "images": [{"id": 7, "file_name": "seven.jpg", "width": 50, "height": 40}],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 5, 20, 20], "segmentation": square, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 9, 9], "segmentation": square, "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [40, 30, 30, 30], "segmentation": square},
            {"id": 4, "image_id": 7, "category_id": 3, "bbox": [4, 4, 0, 3], "segmentation": square},
        ],
        **changes,
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))


def test_coco_boxes_become_corners_inside_the_image_and_crowds_are_left_out(tmp_path: Path) -> None:
    _coco(tmp_path)
    found = open_coco(tmp_path, "val2017")
    assert found.class_names == ("car", "toothbrush")  # by category id
    assert found.category_ids == (3, 90)
    (image,) = found.images
    assert image.boxes.tolist() == [[10, 5, 30, 25], [40, 30, 50, 40]]
    assert image.labels.tolist() == [1, 0]
    assert len(image.outlines) == 2
    assert image.path == tmp_path / "val2017" / "seven.jpg"


def test_mistakes_in_coco_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"instances_val2017\.json is missing"):
        open_coco(tmp_path, "val2017")
    _coco(tmp_path)
    with pytest.raises(ValueError, match="are not those of the training images"):
        open_coco(tmp_path, "val2017", class_names=["toothbrush", "car"])  # another order would mix the classes up
    _coco(tmp_path, annotations=[{"id": 1}])
    with pytest.raises(ValueError, match=r"not a COCO annotation file \(KeyError\('image_id'\)\)"):
        open_coco(tmp_path, "val2017")
