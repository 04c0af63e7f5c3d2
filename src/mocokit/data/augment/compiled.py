"""Apply a drawn augmentation with compiled code: the pixels of recipes.py's `apply_params`, several times faster.

Shapes: H x W image, S side of the view.
"""

import numpy as np
from numpy.typing import NDArray

from mocokit.data.augment.blur import gaussian_blur
from mocokit.data.augment.color import recolor, solarize
from mocokit.data.augment.recipes import Jitter, ViewParams
from mocokit.data.augment.resize import resized_crop

NO_JITTER = Jitter(order=(0, 1, 2, 3), brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0)
"""A jitter that changes nothing."""


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
        params: The drawn parameters.
        crop: `params.crop` in pixels of `image`.
        target: Contiguous array to write to.

    """
    # The flip comes first: it costs nothing here, and the operations after it commute with it.
    resized_crop(image, crop, target, bicubic=params.bicubic, mirrored=params.flip)
    if params.grayscale or params.jitter is not None:
        jitter = params.jitter or NO_JITTER
        factors = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        gray_last = params.grayscale and not params.grayscale_first
        recolor(target, jitter.order, factors, params.grayscale and params.grayscale_first, gray_last)
    if params.blur_radius_px is not None:
        target[:] = gaussian_blur(target, params.blur_radius_px)
    if params.solarize:
        solarize(target)
