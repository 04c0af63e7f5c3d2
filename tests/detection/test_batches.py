"""Images and targets of a detector, and the order of its batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mocokit.data.loading.loader import build_loader
from mocokit.detection.batches import (
    AspectOrder,
    DetectionExample,
    DetectionViews,
    resized_size,
)
from mocokit.detection.data_sets import AnnotatedImage, open_voc


def _image(folder: Path, size: tuple[int, int] = (60, 40), **changes: Any) -> AnnotatedImage:
    """Write a dark picture whose only object is a white rectangle."""
    picture = Image.new("RGB", size, "black")
    picture.paste("white", (6, 10, 26, 30))
    path = folder / f"{size[0]}x{size[1]}.png"
    picture.save(path)
    image = AnnotatedImage(
        path=path,
        image_id=1,
        width=size[0],
        height=size[1],
        boxes=np.array([[6, 10, 26, 30]], np.float32),
        labels=np.array([4]),
        difficult=np.array([False]),
        outlines=([[6, 10, 26, 10, 26, 30, 6, 30]],),
    )
    return replace(image, **changes)


def _views(images: list[AnnotatedImage], **changes: Any) -> DetectionViews:
    views = DetectionViews(
        images=images, short_sides_px=(80, 120), max_long_side_px=170, mirror=True, masks=True, seed=0
    )
    return replace(views, **changes)


def test_the_long_side_bounds_the_short_one() -> None:
    assert resized_size(500, 375, 800, 1333) == (1067, 800)
    assert resized_size(375, 500, 480, 1333) == (480, 640)
    assert resized_size(1000, 300, 800, 1333) == (1333, 400)


def test_boxes_and_masks_follow_the_pixels(tmp_path: Path) -> None:
    views = _views([_image(tmp_path)])
    seen = set()
    for epoch in range(24):
        (example,) = views.make_batch([(epoch, 0)], map)
        bright = (example.pixels[0] > 127).numpy()
        assert bright.shape in {(80, 120), (113, 170)}  # 120 would make the long side 180
        rows = np.flatnonzero(bright.any(axis=1))
        columns = np.flatnonzero(bright.any(axis=0))
        corners = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert example.target["boxes"][0].numpy() == pytest.approx(corners, abs=1)
        masks = example.target["masks"]
        assert masks.shape == (1, *bright.shape)
        assert (masks[0].numpy().astype(bool) != bright).mean() < 0.02
        assert example.target["labels"].tolist() == [5]  # 0 is the background
        seen.add((bright.shape[0], bool(columns[0] > bright.shape[1] / 3)))
    assert len(seen) == 4  # both sizes, mirrored and not


def test_mirrors_and_sizes_are_drawn_evenly(tmp_path: Path) -> None:
    views = _views([_image(tmp_path)], masks=False)
    count = 400
    examples = views.make_batch([(epoch, 0) for epoch in range(count)], map)
    mirrored = sum(bool(example.target["boxes"][0, 0] > example.pixels.shape[2] / 3) for example in examples)
    small = sum(example.pixels.shape[1] == 80 for example in examples)
    for times in (mirrored, small):
        assert abs(times / count - 0.5) < 4 * 0.5 / count**0.5
    still = replace(views, mirror=False).make_batch([(epoch, 0) for epoch in range(30)], map)
    assert not any(example.target["boxes"][0, 0] > example.pixels.shape[2] / 3 for example in still)


def _same(a: DetectionExample, b: DetectionExample) -> bool:
    return (
        a.number == b.number
        and torch.equal(a.pixels, b.pixels)
        and all(torch.equal(a.target[name], b.target[name]) for name in a.target | b.target)
    )


def test_an_example_depends_on_epoch_and_image_alone(pasted_voc: Path) -> None:
    images = open_voc(pasted_voc, ["2007_trainval"]).images
    views = _views(list(images), masks=False)
    alone = [views.make_batch([(5, number)], map)[0] for number in (2, 0, 3)]
    for workers in (0, 2):
        (batch,) = build_loader(views, [[(5, 2), (5, 0), (5, 3)]], num_workers=workers)
        assert all(_same(a, b) for a, b in zip(alone, batch, strict=True))
    other = replace(views, seed=1).make_batch([(5, number) for number in (2, 0, 3)], map)
    assert not all(_same(a, b) for a, b in zip(alone, other, strict=True))


def test_a_batch_has_one_orientation_and_the_order_can_start_at_any_step(tmp_path: Path) -> None:
    wide = _image(tmp_path, (60, 40))
    tall = _image(tmp_path, (40, 60))
    images = [wide, tall, wide, wide, tall, wide, tall]

    def batches(start: int) -> list[list[tuple[int, int]]]:
        return list(AspectOrder(images=images, batch_size=2, start_step=start, total_steps=21, seed=3))

    whole = batches(0)
    assert len(whole) == len(AspectOrder(images=images, batch_size=2, start_step=0, total_steps=21, seed=3)) == 21
    assert all(len({images[number].width for _, number in batch}) == 1 for batch in whole)
    for start in (1, 8, 20):
        assert batches(start) == whole[start:]
    positions = [position for batch in whole for position in batch]
    assert sorted(number for epoch, number in positions if epoch == 2) == list(range(7))
    assert len({tuple(number for epoch, number in positions if epoch == e) for e in range(4)}) > 1


def test_an_image_of_another_size_than_its_annotation_is_named(tmp_path: Path) -> None:
    wrong = _image(tmp_path, width=61)
    with pytest.raises(ValueError, match=r"60x40\.png: has 60x40 pixels, its annotation says 61x40"):
        _views([wrong]).make_batch([(0, 0)], map)
    with pytest.raises(ValueError, match=r"gone\.png: can't be read"):
        _views([replace(wrong, path=tmp_path / "gone.png")]).make_batch([(0, 0)], map)
