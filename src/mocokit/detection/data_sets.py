"""Read images with annotated objects from the folders of PASCAL VOC or COCO.

Boxes are (x1, y1, x2, y2) in pixels of the stored image, counted from 0, with exclusive right and lower edges.
Shapes: n objects of an image, L classes.
"""

import itertools
import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mocokit.data.decode.deep import ValueRanges
from mocokit.detection.image_files import stored_size
from mocokit.settings import require


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotatedImage:
    """One image file and the objects in it."""

    path: Path
    image_id: int | str
    width: int
    height: int
    boxes: NDArray[np.float32]
    """(n, 4)"""
    labels: NDArray[np.int64]
    """(n,) in 0..L-1"""
    difficult: NDArray[np.bool_]
    """(n,) True for objects that VOC's evaluation ignores, found or not."""
    outlines: tuple[Any, ...] = ()
    """COCO's `segmentation` of each object, polygons or run lengths; empty: the layout has none."""

    def only(self, keep: NDArray[np.bool_]) -> "AnnotatedImage":
        """Return the image with the objects where `keep` (n,) is True."""
        return replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            difficult=self.difficult[keep],
            outlines=tuple(itertools.compress(self.outlines, keep)),
        )


@dataclass(frozen=True, kw_only=True)
class DetectionSet:
    """Annotated images and the names of their classes."""

    images: tuple[AnnotatedImage, ...]
    class_names: tuple[str, ...]
    coco_file: Path | None = None
    """COCO's annotation file; None: the layout is VOC's."""
    category_ids: tuple[int, ...] = ()
    """COCO's category id of each class; empty: the layout is VOC's."""
    value_ranges: ValueRanges = field(default_factory=dict)
    """Value range of each sample type of more than 8 bits among the images."""
    notes: tuple[str, ...] = ()
    """Sentences about annotations that were completed, clipped or dropped."""

    def for_training(self, *, skip_difficult: bool = False) -> "DetectionSet":
        """Return the set without images that have no object (FILTER_EMPTY_ANNOTATIONS of Detectron2).

        Args:
            skip_difficult: Drop VOC's difficult objects first. Detectron2, and so the official numbers, train on them.

        Raises:
            ValueError: No image is left.

        """
        images = self.images
        if skip_difficult:
            images = tuple(image.only(~image.difficult) for image in images)
        images = tuple(image for image in images if len(image.boxes))
        if not images:
            raise ValueError("data: no training image has an object in it; check the annotations")
        return replace(self, images=images)


@dataclass
class AnnotationNotes:
    """Flaws of annotations that reading them mends: the name of the file, once for each flaw."""

    without_size: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def sentences(self) -> tuple[str, ...]:
        """Return a sentence for each kind of flaw that occurs."""
        kinds = (
            (self.without_size, "annotations have no image size; it is read from the images"),
            (self.clipped, "boxes reach outside their image; they are clipped"),
            (self.dropped, "boxes have no area inside their image; they are left out"),
        )
        return tuple(f"{len(names):,} {what} ({_first(names)})" for names, what in kinds if names)


def _count(some: Sequence[Path], all_of_them: Sequence[Path], noun: str) -> str:
    return f"{len(some):,} of {len(all_of_them):,} {noun} ({_first([path.name for path in some])})"


def _first(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(names))
    return ", ".join(different[:3]) + (", ..." if len(different) > 3 else "")


def open_voc(root: str | Path, splits: Sequence[str], *, class_names: Sequence[str] | None = None) -> DetectionSet:
    """Read images from VOC folders: `VOC{year}/{JPEGImages,Annotations,ImageSets/Main}`, as VOCdevkit unpacks them.

    Args:
        root: Folder that contains VOC2007 and the like, or contains VOCdevkit.
        splits: Lists to read, each as year and name, such as ("2007_trainval", "2012_trainval").
        class_names: Classes in the order that numbers them; None: all classes that occur, sorted, which is VOC's order.

    Raises:
        ValueError: A list or annotations are missing, an annotation is damaged, or a class is missing from
            `class_names`.

    """
    folder = Path(root).expanduser()
    folder = folder / "VOCdevkit" if (folder / "VOCdevkit").is_dir() else folder
    files = [path for split in splits for path in _voc_annotations(folder, split)]
    missing = [path for path in files if not path.is_file()]
    require(not missing, "data", folder, f"{_count(missing, files, 'annotations')} are missing; copy the data again")
    found = [(path, read_voc_annotation(path)) for path in files]
    names = {name for _, (_, objects) in found for name, *_ in objects}
    classes = _check_classes(names, class_names, where=str(folder))
    notes = AnnotationNotes()
    return DetectionSet(
        images=tuple(_voc_image(path, size, objects, classes, notes) for path, (size, objects) in found),
        class_names=classes,
        notes=notes.sentences(),
    )


def _voc_annotations(folder: Path, split: str) -> list[Path]:
    """Return the annotation files of one list of VOC, such as "2007_trainval"."""
    year, _, name = split.partition("_")
    listing = folder / f"VOC{year}" / "ImageSets" / "Main" / f"{name}.txt"
    require(listing.is_file(), "data", folder, f"{listing} is missing; give the folder that holds VOC{year or '2007'}")
    ids = listing.read_text(encoding="utf-8").split()
    return [folder / f"VOC{year}" / "Annotations" / f"{image_id}.xml" for image_id in ids]


VocObject = tuple[str, bool, tuple[float, ...]]
"""(class, True if difficult, box)"""


def read_voc_annotation(path: Path) -> tuple[tuple[int, int], list[VocObject]]:
    """Return ((width, height), objects) of one annotation file; converters write 0, or nothing, for an unknown size.

    Raises:
        ValueError: The file can't be read, or is not a VOC annotation.

    """
    try:
        text = path.read_bytes()
        # Nested entities, which a document type declares, can expand to gigabytes; UTF-16 could hide the declaration.
        if b"<!DOCTYPE" in text or b"\0" in text:
            raise ValueError("declares a document type, or is not UTF-8; no annotation needs that")
        tree = ET.ElementTree(ET.fromstring(text))
        size = tuple(int(float(tree.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
        objects = [_parse_object(element) for element in tree.iter("object")]
    except (ET.ParseError, OSError, ValueError, OverflowError) as error:  # OverflowError: a size of inf
        raise ValueError(f"data={path}: not a VOC annotation ({error})") from error
    return (size[0], size[1]), objects


def _parse_object(element: ET.Element) -> VocObject:
    x1, y1, x2, y2 = (float(element.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax"))
    # VOC counts pixels from 1 and includes the last one: (1, 1, W, H) is the whole image. Ours is (0, 0, W, H).
    difficult = element.findtext("difficult", "0").strip() == "1"
    return element.findtext("name", "").strip(), difficult, (x1 - 1, y1 - 1, x2, y2)


def _voc_image(
    path: Path, size: tuple[int, int], objects: list[VocObject], classes: tuple[str, ...], notes: AnnotationNotes
) -> AnnotatedImage:
    picture = path.parent.parent / "JPEGImages" / f"{path.stem}.jpg"
    if min(size) <= 0:
        notes.without_size.append(path.name)
        size = stored_size(picture)
    image = AnnotatedImage(
        path=picture,
        image_id=path.stem,
        width=size[0],
        height=size[1],
        boxes=np.array([box for *_, box in objects], np.float32).reshape(-1, 4),
        labels=np.array([classes.index(name) for name, *_ in objects], np.int64),
        difficult=np.array([difficult for _, difficult, _ in objects], np.bool_),
    )
    return _fit_boxes(image, notes)


def open_coco(root: str | Path, split: str, *, class_names: Sequence[str] | None = None) -> DetectionSet:
    """Read images from COCO folders: `annotations/instances_{split}.json` and `{split}/*.jpg`.

    Crowds are left out: they are not trained on, and the evaluation reads them from the annotation file itself.

    Args:
        root: Folder that contains `annotations`.
        split: Name of the split, such as "train2017".
        class_names: Classes that the file's categories must equal, in the same order; None: any categories.

    Raises:
        ValueError: The annotation file is missing or damaged, or its categories differ from `class_names`.

    """
    folder = Path(root).expanduser()
    path = folder / "annotations" / f"instances_{split}.json"
    require(path.is_file(), "data", root, f"{path} is missing; give the folder that holds annotations/ and {split}/")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        objects = defaultdict[int, list[Mapping[str, Any]]](list)
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd", 0):
                objects[annotation["image_id"]].append(annotation)
        label_of = {category["id"]: label for label, category in enumerate(categories)}
        notes = AnnotationNotes()
        images = tuple(
            _coco_image(folder / split, row, objects[row["id"]], label_of, notes) for row in content["images"]
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"data={path}: not a COCO annotation file ({error!r})") from error
    names = tuple(str(category["name"]) for category in categories)
    return DetectionSet(
        images=images,
        class_names=_check_classes(names, class_names, where=str(path)),
        coco_file=path,
        category_ids=tuple(int(category["id"]) for category in categories),
        notes=notes.sentences(),
    )


def _coco_image(
    folder: Path,
    row: Mapping[str, Any],
    objects: list[Mapping[str, Any]],
    label_of: Mapping[int, int],
    notes: AnnotationNotes,
) -> AnnotatedImage:
    picture = folder / row["file_name"]
    size = (int(row.get("width") or 0), int(row.get("height") or 0))
    if min(size) <= 0:
        notes.without_size.append(picture.name)
        size = stored_size(picture)
    corners = np.array([entry["bbox"] for entry in objects], np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]  # COCO stores (x, y, width, height)
    outlines = tuple(entry.get("segmentation") for entry in objects)
    image = AnnotatedImage(
        path=picture,
        image_id=row["id"],
        width=size[0],
        height=size[1],
        boxes=corners,
        labels=np.array([label_of[entry["category_id"]] for entry in objects], np.int64),
        difficult=np.zeros(len(objects), np.bool_),
        outlines=outlines,
    )
    return _fit_boxes(image, notes)


def _fit_boxes(image: AnnotatedImage, notes: AnnotationNotes) -> AnnotatedImage:
    """Clip boxes at the edges of the image, and drop those without an area, which no detector can regress to."""
    edge = np.array([image.width, image.height] * 2, np.float32)
    boxes = np.clip(image.boxes, 0, edge)
    keep = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    outside = keep & (np.abs(image.boxes - boxes).max(axis=1, initial=0) > 1)  # a pixel is how counting from 0 differs
    notes.clipped += [image.path.name] * int(outside.sum())
    notes.dropped += [image.path.name] * int((~keep).sum())
    return replace(image, boxes=boxes).only(keep)


def _check_classes(found: Sequence[str] | set[str], wanted: Sequence[str] | None, *, where: str) -> tuple[str, ...]:
    """Return the class names: `wanted` if it is given, else `found`, sorted if it is a set.

    Raises:
        ValueError: `wanted` lacks a class, or is in another order than a `found` that has one.

    """
    if wanted is None:
        return tuple(sorted(found)) if isinstance(found, set) else tuple(found)
    unknown = sorted(set(found) - set(wanted))
    if unknown or (not isinstance(found, set) and tuple(found) != tuple(wanted)):
        raise ValueError(f"data={where}: classes {unknown[:5] or list(found)[:5]} are not those of the training images")
    return tuple(wanted)
