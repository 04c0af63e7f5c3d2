"""The annotations of pasted objects describe the pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

from mocokit.detection.data_sets import open_voc
from tests.pasted_objects import MAX_OBJECTS, cut_ellipse, write_pasted_voc


def test_boxes_are_those_of_the_pasted_pixels(tmp_path: Path) -> None:
    cutout = Image.new("RGBA", (60, 50), (0, 0, 0, 0))
    cutout.paste((255, 0, 0, 255), (10, 5, 50, 35))  # 40x30 pixels of red within a transparent border
    white = Image.new("RGB", (30, 20), "white")
    write_pasted_voc(
        tmp_path, "2007_test", objects={"brick": [cutout]}, photographs=[white], num_images=12, size_px=100, seed=1
    )
    images = open_voc(tmp_path, ["2007_test"]).images
    assert len(images) == 12
    assert {len(image.boxes) for image in images} <= set(range(1, MAX_OBJECTS + 1))
    assert sum(len(image.boxes) for image in images) > 12  # some images have more than one object
    for image in images:
        green = np.asarray(Image.open(image.path))[:, :, 1]
        painted = np.zeros((100, 100), bool)
        for x1, y1, x2, y2 in image.boxes.astype(int):
            painted[y1:y2, x1:x2] = True
        assert np.abs(green.astype(int) - np.where(painted, 0, 255)).mean() < 5  # JPEG changes pixels at the edges only
        assert green[painted].mean() < 30 and green[~painted].mean() > 245


def test_the_same_seed_gives_the_same_set(tmp_path: Path, photograph: Image.Image) -> None:
    for number, seed in enumerate((3, 3, 4)):
        write_pasted_voc(
            tmp_path / str(number),
            "2007_test",
            objects={"cup": [cut_ellipse(photograph)]},
            photographs=[photograph],
            num_images=3,
            size_px=64,
            seed=seed,
        )
    boxes = [[image.boxes.tolist() for image in open_voc(tmp_path / str(n), ["2007_test"]).images] for n in range(3)]
    assert boxes[0] == boxes[1] != boxes[2]
