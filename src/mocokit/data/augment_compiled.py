"""The augmentations of augment.py on arrays, in machine code: the reference path's pixels, several times as fast.

Shapes: H x W image, S side of the view.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from mocokit.data.augment import SOLARIZE_FROM, Jitter, ViewParams
from mocokit.data.blur import gaussian_blur
from mocokit.data.color import adjust_brightness, adjust_contrast, adjust_saturation, shift_hue, to_grayscale
from mocokit.data.resize import resized_crop

SOLARIZED = np.array([level if level < SOLARIZE_FROM else 255 - level for level in range(256)], np.uint8)
"""What each level becomes."""


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
        target: Where the view goes.

    """
    view = resized_crop(image, crop, len(target), bicubic=params.bicubic)
    if params.grayscale or params.jitter is not None:
        view = _recolor(view, params)
    if params.blur_radius_px is not None:
        view = gaussian_blur(view, params.blur_radius_px)
    if params.solarize:
        view = np.asarray(cv2.LUT(view, SOLARIZED), np.uint8)
    if params.flip:
        cv2.flip(view, 1, dst=target)
    else:
        target[:] = view


def _recolor(view: NDArray[np.uint8], params: ViewParams) -> NDArray[np.uint8]:
    channels = np.empty((3, *view.shape[:2]), np.uint8)
    cv2.split(view, list(channels))
    planes = channels.reshape(3, -1)
    if params.grayscale and params.grayscale_first:
        to_grayscale(planes)
    if params.jitter is not None:
        _apply_jitter(planes, params.jitter)
    if params.grayscale and not params.grayscale_first:
        to_grayscale(planes)
    merged: NDArray[np.uint8] = cv2.merge(list(channels))
    return merged


def _apply_jitter(planes: NDArray[np.uint8], jitter: Jitter) -> None:
    for number in jitter.order:
        if number == 0 and jitter.brightness != 1.0:
            adjust_brightness(planes, jitter.brightness)
        elif number == 1 and jitter.contrast != 1.0:
            adjust_contrast(planes, jitter.contrast)
        elif number == 2 and jitter.saturation != 1.0:
            adjust_saturation(planes, jitter.saturation)
        elif number == 3 and jitter.hue != 0.0:
            shift_hue(planes, int(jitter.hue * 255) % 256)
