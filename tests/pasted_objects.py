"""A detection set made of pictures at hand: cut-out objects pasted on photographs, in VOC's folders.

For trying detection in minutes; the boxes are exact, since they are those of the pasted pixels.
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mocokit.randomness import Purpose, generator

SIZE_SHARES = (0.25, 0.5)
"""Long side of an object over the side of its image."""
MAX_OBJECTS = 3
"""In an image."""

Box = tuple[int, int, int, int]


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
        root: Folder that gets VOC{year}.
        split: Year and list, such as "2007_trainval".
        objects: RGBA cut-outs by class; their transparent border is cut off.
        photographs: Backgrounds, resized to the square.
        num_images: How many to write.
        size_px: Their side.
        seed: Of all draws; other lists of the same year need another one.

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
    """Paste 1 to MAX_OBJECTS objects that do not touch, in place; their classes and boxes (edges exclusive)."""
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
    """One image's objects as VOC writes them: pixels counted from 1, the last one included."""
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
    """The ellipse within a picture, the rest transparent: an object out of any photograph."""
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).ellipse((0, 0, picture.width - 1, picture.height - 1), fill=255)
    cutout = picture.convert("RGBA")
    cutout.putalpha(mask)
    return cutout
