"""The augmentations of augment.py on arrays, in machine code: the reference path's pixels, several times as fast.

Shapes: H x W image, S side of the view.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from mocokit.data.augment.blur import gaussian_blur
from mocokit.data.augment.color import recolor
from mocokit.data.augment.recipes import SOLARIZE_FROM, Jitter, ViewParams
from mocokit.data.augment.resize import resized_crop

SOLARIZED = np.array([level if level < SOLARIZE_FROM else 255 - level for level in range(256)], np.uint8)
"""What each level becomes."""

NO_JITTER = Jitter(order=(0, 1, 2, 3), brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0)


def apply_params_compiled(
    image: NDArray[np.uint8],
    params: ViewParams,
    *,
    crop: tuple[float, float, float, float],
    target: NDArray[np.uint8],
) -> None:
    """Write the view of `image` (H, W, 3) that `params` describes to `target` (S, S, 3).

    Args:
        image: The image, or a smaller version of it.
        params: The draw.
        crop: `params.crop` in pixels of `image`.
        target: Where the view goes, in one piece.

    """
    resized_crop(image, crop, target, bicubic=params.bicubic, mirrored=params.flip)  # all that follows is symmetric
    if params.grayscale or params.jitter is not None:
        jitter = params.jitter or NO_JITTER
        factors = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        gray_last = params.grayscale and not params.grayscale_first
        recolor(target, jitter.order, factors, params.grayscale and params.grayscale_first, gray_last)
    if params.blur_radius_px is not None:
        target[:] = gaussian_blur(target, params.blur_radius_px)
    if params.solarize:
        cv2.LUT(target, SOLARIZED, dst=target)
