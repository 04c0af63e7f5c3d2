"""Make a small detection set in the layout of VOC, by pasting cut-out objects on photographs.

It serves to try detection in minutes. Boxes are exact: they are the edges of the pasted pixels.
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mocokit.randomness import Purpose, generator

SIZE_SHARES = (0.25, 0.5)
"""Range of an object's long side, as a share of its image's side."""
MAX_OBJECTS = 3
"""Objects in one image."""

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels, counted from 0; x2 and y2 are exclusive."""


def write_pasted_voc(
    root: Path,
    split: str,
    *,
    objects: Mapping[str, Sequence[Image.Image]],
    photographs: Sequence[Image.Image],
    num_images: int,
    size_px: int,
    seed: int,
) -> None:
    """Write `num_images` square images with 1 to MAX_OBJECTS objects each, and their annotations.

    Args:
        root: Folder in which VOC{year} is made.
        split: Year and name of the list, such as "2007_trainval".
        objects: RGBA cut-outs of each class; their transparent border is removed.
        photographs: Backgrounds; they are resized to a square.
        num_images: Number of images to write.
        size_px: Side of the images.
        seed: Seed of all draws; each list of the same year needs its own, or its images repeat.

    """
    year, _, name = split.partition("_")
    folder = root / f"VOC{year}"
    ids = list[str]()
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(num_images):
        draws = generator(seed, Purpose.SUBSET, number)
        picture = photographs[int(draws.integers(len(photographs)))].convert("RGB").resize((size_px, size_px))
        boxes = _paste_some(picture, objects, draws)
        ids.append(f"{name}_{number:06d}")
        picture.save(folder / "JPEGImages" / f"{ids[-1]}.jpg", quality=95)
        write_annotation(folder / "Annotations" / f"{ids[-1]}.xml", picture.size, boxes)
    (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")


def _paste_some(
    picture: Image.Image, objects: Mapping[str, Sequence[Image.Image]], draws: np.random.Generator
) -> list[tuple[str, Box]]:
    """Paste up to MAX_OBJECTS objects into `picture`; return their classes and boxes.

    An object that would touch an earlier one is left out; the first one always fits.
    """
    pasted: list[tuple[str, Box]] = []
    names = sorted(objects)
    for _ in range(int(draws.integers(1, MAX_OBJECTS + 1))):
        name = names[int(draws.integers(len(names)))]
        cutout = objects[name][int(draws.integers(len(objects[name])))].convert("RGBA")
        cutout = cutout.crop(cutout.getchannel("A").getbbox())
        scale = picture.width * draws.uniform(*SIZE_SHARES) / max(cutout.size)
        width, height = (max(8, round(side * scale)) for side in cutout.size)
        left, top = (int(draws.integers(picture.width - side)) for side in (width, height))
        box = (left, top, left + width, top + height)
        if not any(_touch(box, other) for _, other in pasted):
            cutout = cutout.resize((width, height))
            picture.paste(cutout, (left, top), cutout)
            pasted.append((name, box))
    return pasted


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def write_annotation(
    path: Path, size: tuple[int, int], boxes: Sequence[tuple[str, Box]], *, difficult: Sequence[bool] = ()
) -> None:
    """Write the objects of one image in VOC's format, which counts pixels from 1 and includes the last one."""
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = f"{path.stem}.jpg"
    size_element = ET.SubElement(root, "size")
    for name, value in zip(("width", "height", "depth"), (*size, 3), strict=True):
        ET.SubElement(size_element, name).text = str(value)
    for number, (name, (x1, y1, x2, y2)) in enumerate(boxes):
        element = ET.SubElement(root, "object")
        ET.SubElement(element, "name").text = name
        ET.SubElement(element, "difficult").text = str(int(bool(difficult) and difficult[number]))
        edges = ET.SubElement(element, "bndbox")
        for edge, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ET.SubElement(edges, edge).text = str(value)
    ET.ElementTree(root).write(path, encoding="utf-8")


def cut_ellipse(picture: Image.Image) -> Image.Image:
    """Return the picture with all but its largest ellipse transparent: an object made from any photograph."""
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).ellipse((0, 0, picture.width - 1, picture.height - 1), fill=255)
    cutout = picture.convert("RGBA")
    cutout.putalpha(mask)
    return cutout
