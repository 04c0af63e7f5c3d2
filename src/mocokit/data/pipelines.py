"""An image as stored -> its views: the fast pipeline, and the reference pipeline that it is checked against.

Both make the same draws and, from images of which they decode all, the same pixels (`mocokit verify --augment`). The
fast one decodes a large JPEG at a fraction of its size, where every crop stays well above the size of a view.

Shapes: V views of an image that have the same size, S side of a view.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from itertools import accumulate, chain, pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.augment.compiled import apply_params_compiled
from mocokit.data.augment.recipes import Jitter, ViewParams, apply_params
from mocokit.data.decode.decode import DecodeError, decode
from mocokit.data.decode.jpeg import FRACTIONS, JpegHeader, decode_jpeg, read_jpeg_header
from mocokit.data.jpeg_layout import read_layout
from mocokit.data.jpeg_small import LEAST_FRACTION, decode_small
from mocokit.data.sources.sources import RawImage

LEAST_ENLARGED = 1.5
"""Pixels that a crop keeps for each pixel of the view when a JPEG is decoded smaller. On photographs of 12 megapixels
views then differ by 0.6 of 255 on average at most from those of the full decode; by 1.0 if this were 1."""

Draw = Callable[[int, int], Sequence[ViewParams]]
"""(height, width) -> the draw of each view."""


class Pipeline(Protocol):
    """A way to make views."""

    def __call__(
        self, raw: RawImage, draw: Draw, *targets: NDArray[np.uint8], max_image_px: int, crops_only: bool
    ) -> Sequence[ViewParams]:
        """Fill each of `targets` (V, S, S, 3) in turn and return what was drawn.

        V and S differ between targets; the views in one depend on no later one.

        Args:
            raw: The image as stored.
            draw: Draws all views.
            targets: Where they go.
            max_image_px: Larger images are bad images.
            crops_only: Leave out color, blur and flip.

        Raises:
            DecodeError: A bad image.

        """
        ...


def reference_views(
    raw: RawImage, draw: Draw, *targets: NDArray[np.uint8], max_image_px: int, crops_only: bool
) -> Sequence[ViewParams]:
    """Pillow and torchvision, operation by operation, as officially."""
    image = decode(raw, max_image_px=max_image_px)
    drawn = draw(image.height, image.width)
    for view, params in zip(chain(*targets), drawn, strict=True):
        view[:] = apply_params(image, params.crop_only() if crops_only else params, size_px=len(view))
    return drawn


def fast_views(
    raw: RawImage, draw: Draw, *targets: NDArray[np.uint8], max_image_px: int, crops_only: bool
) -> Sequence[ViewParams]:
    """libjpeg-turbo and machine code; what is not an ordinary JPEG is decoded by Pillow."""
    decoded, drawn = decode_for_views(raw, draw, *targets, max_image_px=max_image_px)
    for target, (pixels, fraction), views in zip(targets, decoded, _by_target(drawn, targets), strict=True):
        for view, params in zip(target, views, strict=True):
            top, left, height, width = (side / fraction for side in params.crop)
            todo = params.crop_only() if crops_only else params
            apply_params_compiled(pixels, todo, crop=(top, left, height, width), target=view)
    return drawn


Decoded = tuple[NDArray[np.uint8], int]
"""Pixels (h, w, 3), and the image's size over theirs."""


def decode_for_views(
    raw: RawImage, draw: Draw, *targets: NDArray[np.uint8], max_image_px: int
) -> tuple[list[Decoded], Sequence[ViewParams]]:
    """Decode once for the views of all `targets` (V, S, S, 3), no larger than their crops need.

    Returns:
        What each target is cut from, and the draw.

    Raises:
        DecodeError: A bad image.

    """
    if isinstance(raw, bytes) and (header := read_jpeg_header(raw)) is not None:
        if header.height * header.width > max_image_px:
            raise DecodeError(f"{header.width}x{header.height} pixels, more than data.max_image_px={max_image_px}")
        drawn = draw(header.height, header.width)
        with suppress(ValueError):  # Pillow, which forgives more, has the last word
            return list(_decode_small(raw, header, drawn, targets)), drawn
    pixels = np.asarray(decode(raw, max_image_px=max_image_px))
    return [(pixels, 1)] * len(targets), draw(*pixels.shape[:2])


def _decode_small(
    raw: bytes, header: JpegHeader, drawn: Sequence[ViewParams], targets: Sequence[NDArray[np.uint8]]
) -> Iterator[Decoded]:
    """What each target is cut from: what the one before is cut from, unless its crops need finer pixels."""
    pixels = np.empty(0, np.uint8)
    fraction = max(FRACTIONS) + 1
    crops = [params.crop for params in drawn]
    for target, views in zip(targets, _by_target(drawn, targets), strict=True):
        needed = _smallest_fraction(views, target.shape[1])
        if needed < fraction:
            pixels = decode_jpeg(raw, header, fraction=needed, crops=crops)
            fraction = needed
        yield pixels, fraction


def _by_target(drawn: Sequence[ViewParams], targets: Sequence[NDArray[np.uint8]]) -> list[Sequence[ViewParams]]:
    """The draw of each target's views."""
    stops = [0, *accumulate(len(target) for target in targets)]
    return [drawn[start:stop] for start, stop in pairwise(stops)]


def _smallest_fraction(drawn: Sequence[ViewParams], size_px: int) -> int:
    shortest = min(min(params.crop[2:]) for params in drawn)
    return next((part for part in FRACTIONS if shortest >= part * LEAST_ENLARGED * size_px), 1)


PIPELINES: dict[str, Pipeline] = {"fast": fast_views, "reference": reference_views}


def warm_up() -> None:
    """Make or load the fast pipeline's machine code, once for this process and those that it forks."""
    gray = np.zeros((16, 16, 3), np.uint8)
    jitter = Jitter(order=(0, 1, 2, 3), brightness=1.1, contrast=1.1, saturation=1.1, hue=0.1)
    params = ViewParams(crop=(0, 0, 16, 16), jitter=jitter, grayscale=True, blur_radius_px=1.0, flip=True)
    apply_params_compiled(gray, params, crop=params.crop, target=np.empty((8, 8, 3), np.uint8))
    file = BytesIO()
    Image.fromarray(gray).save(file, "JPEG")
    if (layout := read_layout(file.getvalue())) is not None:
        decode_small(file.getvalue(), layout, fraction=LEAST_FRACTION, part=(0, 0, 16, 16))
