"""Batches for a detector: images resized to a random short side and randomly mirrored, with their objects.

Every draw depends on (seed, epoch, image) alone, and the order of batches on (seed, epoch). So a run can be continued
from any step.

Shapes: n objects of an image; pixels (3, H, W) uint8; boxes (n, 4) as in data_sets.py.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Sampler

from mocokit.data.batch import Each
from mocokit.data.decode.decode import DecodeError, decode
from mocokit.data.decode.deep import NO_RANGES, ValueRanges
from mocokit.detection.coco_library import load_coco_library
from mocokit.detection.data_sets import AnnotatedImage
from mocokit.randomness import Purpose, generator, permutation

MAX_IMAGE_PX = 178_956_970
"""Pillow's own limit, in pixels; a larger image is refused."""


class DetectionExample(NamedTuple):
    """One image and its objects, as input of a detector."""

    number: int
    """Position of the image in its set."""
    pixels: Tensor
    """(3, H, W) uint8"""
    target: dict[str, Tensor]
    """torchvision's target: boxes (n, 4); labels (n,) from 1 on, 0 is the background; masks (n, H, W) if asked for."""


@dataclass(frozen=True, kw_only=True)
class DetectionViews:
    """Maps positions (epoch, image index) to examples."""

    images: Sequence[AnnotatedImage]
    short_sides_px: Sequence[int]
    """Sizes to draw from, for each image and epoch."""
    max_long_side_px: int
    """Largest long side; an elongated image gets a shorter short side."""
    mirror: bool
    """Mirror each image with probability 1/2."""
    masks: bool
    """Also draw the masks of the objects."""
    seed: int
    value_ranges: ValueRanges = field(default_factory=dict)

    def make_batch(self, positions: Sequence[tuple[int, int]], each: Each) -> list[DetectionExample]:
        """Return the examples of a batch; `each` maps a function over the positions, perhaps in threads."""
        return list(each(self._make_example, positions))

    def _make_example(self, position: tuple[int, int]) -> DetectionExample:
        epoch, index = position
        image = self.images[index]
        draws = generator(self.seed, Purpose.DETECTION_VIEW, epoch, index)
        short_side = int(draws.choice(self.short_sides_px))
        mirrored = self.mirror and bool(draws.random() < 0.5)
        width, height = resized_size(image.width, image.height, short_side, self.max_long_side_px)
        picture = read_picture(image, self.value_ranges).resize((width, height), Image.Resampling.BILINEAR)
        target = {
            "boxes": torch.from_numpy(_fit_boxes(image, width, height, mirrored)),
            "labels": torch.from_numpy(image.labels + 1),
        }
        if self.masks:
            target["masks"] = torch.from_numpy(_fit_masks(image, width, height, mirrored))
        picture = ImageOps.mirror(picture) if mirrored else picture
        return DetectionExample(index, torch.from_numpy(np.array(picture)).permute(2, 0, 1), target)


def resized_size(width: int, height: int, short_side: int, max_long_side: int) -> tuple[int, int]:
    """Return (width, height) with this short side, or with `max_long_side` if that is smaller (Detectron2's rule).

    Each is at least 1, which matters to images thinner than 1 : 2 `max_long_side`.
    """
    scale = min(short_side / min(width, height), max_long_side / max(width, height))
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


def read_picture(image: AnnotatedImage, ranges: ValueRanges = NO_RANGES) -> Image.Image:
    """Return the decoded RGB image.

    Raises:
        ValueError: The file can't be read, or its size differs from the annotated one, so that no box would fit.

    """
    try:
        picture = decode(image.path.read_bytes(), max_image_px=MAX_IMAGE_PX, ranges=ranges)
    except (DecodeError, OSError) as error:
        raise ValueError(f"data={image.path}: can't be read ({error})") from error
    if picture.size != (image.width, image.height):
        raise ValueError(
            f"data={image.path}: has {picture.width}x{picture.height} pixels, its annotation says "
            f"{image.width}x{image.height}; mend one of them"
        )
    return picture


def _fit_boxes(image: AnnotatedImage, width: int, height: int, mirrored: bool) -> NDArray[np.float32]:
    """Return the boxes (n, 4) in pixels of the resized, perhaps mirrored image."""
    scale = np.array([width / image.width, height / image.height] * 2, np.float32)
    boxes: NDArray[np.float32] = image.boxes * scale
    if mirrored:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return boxes


def _fit_masks(image: AnnotatedImage, width: int, height: int, mirrored: bool) -> NDArray[np.uint8]:
    """Return masks (n, height, width) of 0 and 1: drawn at the stored size, then resized by nearest neighbour."""
    masks = np.zeros((len(image.boxes), height, width), np.uint8)
    for mask, outline in zip(masks, image.outlines, strict=True):
        drawn = Image.fromarray(_draw_outline(outline, image.width, image.height))
        mask[:] = np.asarray(drawn.resize((width, height), Image.Resampling.NEAREST))
    return np.ascontiguousarray(masks[:, :, ::-1]) if mirrored else masks


def _draw_outline(outline: Any, width: int, height: int) -> NDArray[np.uint8]:
    """Return the mask (height, width) of an object given as COCO polygons or run lengths."""
    mask = load_coco_library().mask
    is_polygons = isinstance(outline, list)
    if is_polygons or isinstance(outline["counts"], list):
        outline = mask.frPyObjects(outline, height, width)
    drawn: NDArray[np.uint8] = np.asarray(mask.decode(mask.merge(outline) if is_polygons else outline), np.uint8)
    return drawn


@dataclass(frozen=True, kw_only=True)
class AspectOrder(Sampler[list[tuple[int, int]]]):
    """Order of positions (epoch, image index) in batches of either wide or upright images, which saves padding.

    Images wait in one list per kind; a list becomes a batch when it holds `batch_size` images, and leftovers wait into
    the next epoch (ASPECT_RATIO_GROUPING of Detectron2).
    """

    images: Sequence[AnnotatedImage]
    batch_size: int
    start_step: int
    """Batches to skip, when a run continues."""
    total_steps: int
    """Batches of the whole run, skipped ones included."""
    seed: int

    def __len__(self) -> int:
        return self.total_steps - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._all_batches(), self.start_step, self.total_steps)

    def _all_batches(self) -> Iterator[list[tuple[int, int]]]:
        waiting: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        epoch = 0
        while True:
            # upright or square images wait in waiting[0], wide ones in waiting[1]
            for index in permutation(self.seed, Purpose.EPOCH_ORDER, len(self.images), epoch):
                image = self.images[index]
                batch = waiting[image.width > image.height]
                batch.append((epoch, int(index)))
                if len(batch) == self.batch_size:
                    yield batch.copy()
                    batch.clear()
            epoch += 1
