"""Make the views of one stored image: a fast pipeline, and the reference pipeline that it is checked against.

Both pipelines make the same draws. They also make the same pixels, except for a large JPEG: the fast pipeline decodes
it at 1/2, 1/4 or 1/8 of its size if every crop keeps LEAST_ENLARGED pixels for each pixel of the view.
`mocokit verify --augment` compares them.

Shapes: V views of an image that have the same size, S side of a view.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, chain, pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mocokit.data.augment.compiled import apply_params_compiled
from mocokit.data.augment.recipes import Jitter, ViewParams, apply_params
from mocokit.data.decode.decode import DecodeError, decode
from mocokit.data.decode.deep import NO_RANGES, ValueRanges
from mocokit.data.decode.jpeg import FRACTIONS, JpegHeader, decode_jpeg, read_jpeg_header
from mocokit.data.sources.sources import RawImage

LEAST_ENLARGED = 1.5
"""Least number of decoded pixels per pixel of a view, along each side, when a JPEG is decoded at a smaller size. On
12-megapixel photographs the views then differ from those of the full decode by at most 0.6 of 255 on average; with 1
instead of 1.5 they differ by 1.0."""

Draw = Callable[[int, int], Sequence[ViewParams]]
"""Function (height, width) -> the drawn parameters of each view."""


class Pipeline(Protocol):
    """A function that makes the views of one image: `fast_views` or `reference_views`."""

    def __call__(
        self,
        raw: RawImage,
        draw: Draw,
        *targets: NDArray[np.uint8],
        max_image_px: int,
        crops_only: bool,
        ranges: ValueRanges = NO_RANGES,
    ) -> Sequence[ViewParams]:
        """Fill each of `targets` (V, S, S, 3) in turn, and return the drawn parameters.

        V and S may differ between targets. The views in a target do not depend on later targets.

        Args:
            raw: The image as stored.
            draw: Draws the parameters of all views.
            targets: Arrays to write the views to.
            max_image_px: Largest number of pixels; a larger image is a bad image.
            crops_only: Crop and resize only, without color, blur and flip.
            ranges: Value range of each sample type of more than 8 bits.

        Raises:
            DecodeError: The image is bad.

        """
        ...


def reference_views(
    raw: RawImage,
    draw: Draw,
    *targets: NDArray[np.uint8],
    max_image_px: int,
    crops_only: bool,
    ranges: ValueRanges = NO_RANGES,
) -> Sequence[ViewParams]:
    """Make views with Pillow and torchvision, operation by operation, like the official code."""
    image = decode(raw, max_image_px=max_image_px, ranges=ranges)
    drawn = draw(image.height, image.width)
    for view, params in zip(chain(*targets), drawn, strict=True):
        view[:] = apply_params(image, params.crop_only() if crops_only else params, size_px=len(view))
    return drawn


def fast_views(
    raw: RawImage,
    draw: Draw,
    *targets: NDArray[np.uint8],
    max_image_px: int,
    crops_only: bool,
    ranges: ValueRanges = NO_RANGES,
) -> Sequence[ViewParams]:
    """Make views with libjpeg-turbo and compiled code; Pillow decodes everything but ordinary JPEGs."""
    decoded, drawn = decode_for_views(raw, draw, *targets, max_image_px=max_image_px, ranges=ranges)
    for target, (pixels, fraction), views in zip(targets, decoded, _by_target(drawn, targets), strict=True):
        for view, params in zip(target, views, strict=True):
            top, left, height, width = (side / fraction for side in params.crop)
            wanted = params.crop_only() if crops_only else params
            apply_params_compiled(pixels, wanted, crop=(top, left, height, width), target=view)
    return drawn


Decoded = tuple[NDArray[np.uint8], int]
"""Decoded pixels (h, w, 3), and the divisor by which they are smaller than the image."""


def decode_for_views(
    raw: RawImage,
    draw: Draw,
    *targets: NDArray[np.uint8],
    max_image_px: int,
    ranges: ValueRanges = NO_RANGES,
) -> tuple[list[Decoded], Sequence[ViewParams]]:
    """Decode an image for the views of all `targets` (V, S, S, 3), no larger than their crops need.

    Returns:
        The decoded image to cut each target from, and the drawn parameters.

    Raises:
        DecodeError: The image is bad.

    """
    if isinstance(raw, bytes) and (header := read_jpeg_header(raw)) is not None:
        if header.height * header.width > max_image_px:
            raise DecodeError(f"{header.width}x{header.height} pixels, more than data.max_image_px={max_image_px}")
        drawn = draw(header.height, header.width)
        with suppress(ValueError):  # Pillow is more tolerant, so it decides below if the image is bad
            return list(_decode_small(raw, header, drawn, targets)), drawn
    pixels = np.asarray(decode(raw, max_image_px=max_image_px, ranges=ranges))
    return [(pixels, 1)] * len(targets), draw(*pixels.shape[:2])


def _decode_small(
    raw: bytes, header: JpegHeader, drawn: Sequence[ViewParams], targets: Sequence[NDArray[np.uint8]]
) -> Iterator[Decoded]:
    """Yield the decoded image for each target; reuse the previous one unless this target needs a finer one."""
    pixels = np.empty(0, np.uint8)
    fraction = max(FRACTIONS) + 1
    for target, views in zip(targets, _by_target(drawn, targets), strict=True):
        needed = _largest_fraction(views, target.shape[1])
        if needed < fraction:
            pixels = decode_jpeg(raw, header, fraction=needed)
            fraction = needed
        yield pixels, fraction


def _by_target(drawn: Sequence[ViewParams], targets: Sequence[NDArray[np.uint8]]) -> list[Sequence[ViewParams]]:
    """Return the drawn parameters of each target's views."""
    stops = [0, *accumulate(len(target) for target in targets)]
    return [drawn[start:stop] for start, stop in pairwise(stops)]


def _largest_fraction(drawn: Sequence[ViewParams], size_px: int) -> int:
    """Return the largest divisor of the image's size that leaves every crop enough pixels for views of `size_px`."""
    shortest = min(min(params.crop[2:]) for params in drawn)
    return next((fraction for fraction in FRACTIONS if shortest >= fraction * LEAST_ENLARGED * size_px), 1)


PIPELINES: dict[str, Pipeline] = {"fast": fast_views, "reference": reference_views}


def warm_up() -> None:
    """Compile the fast pipeline's code or load it from disk, for this process and the workers it forks later."""
    gray = np.zeros((16, 16, 3), np.uint8)
    read_only = gray.copy()  # as Pillow returns pixels; numba compiles read-only inputs separately
    read_only.flags.writeable = False
    jitter = Jitter(order=(0, 1, 2, 3), brightness=1.1, contrast=1.1, saturation=1.1, hue=0.1)
    params = ViewParams(crop=(0, 0, 16, 16), jitter=jitter, grayscale=True, blur_radius_px=1.0, solarize=True)
    for image in (gray, read_only):
        apply_params_compiled(image, params, crop=params.crop, target=np.empty((8, 8, 3), np.uint8))
