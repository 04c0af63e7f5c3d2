"""The papers' augmentations: draw their parameters, and apply them to one image with torchvision and Pillow.

Drawing and applying are separate, so that other implementations can apply the same draw and be compared with this one,
the reference. Parameters follow torchvision's distributions. Sources: MoCo v1 sec. 3.3 and MoCo v2 sec. 2, with
moco/main_moco.py and moco/loader.py; MoCo v3 app. A; SimCLR app. A.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode

SOLARIZE_FROM = 128
"""Lowest level that solarize inverts (Pillow's default)."""


EVAL_CROP_RATIO = 224 / 256
"""Evaluation: side of the central crop over the resized short side, as officially."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one view's augmentation: probabilities (`_p`) and ranges."""

    crop_scale: tuple[float, float]
    """Range of the crop's share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width over its height."""
    grayscale_first: bool
    """True: grayscale before the color jitter (MoCo v1); False: after it (aug+)."""
    jitter_p: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale_p: float = 0.2
    blur_p: float
    blur_radius_px: tuple[float, float] = (0.1, 2.0)
    """Range of the radius of Pillow's GaussianBlur, applied to the resized crop."""
    flip_p: float = 0.5
    solarize_p: float = 0.0
    """Probability that levels of 128 and more become 255 - level, as in Pillow's `solarize`."""
    bicubic: bool = False
    """Resize the crop with the bicubic filter instead of the bilinear one."""


AUG = Recipe(
    crop_scale=(0.2, 1.0),
    grayscale_first=True,
    jitter_p=1.0,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.4,
    blur_p=0.0,
)
"""MoCo v1's augmentation (main_moco.py without --aug-plus)."""

AUG_PLUS = Recipe(
    crop_scale=(0.2, 1.0),
    grayscale_first=False,
    jitter_p=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    blur_p=0.5,
)
"""MoCo v2's "aug+" (main_moco.py --aug-plus)."""

_MOCO_V3_FIRST = Recipe(
    crop_scale=(0.2, 1.0),
    grayscale_first=False,
    jitter_p=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    blur_p=1.0,
)
MOCO_V3_PAIR = _MOCO_V3_FIRST, replace(_MOCO_V3_FIRST, blur_p=0.1, solarize_p=0.2)
"""MoCo v3's query and key views: BYOL's except for the smallest crop, 20 % of the area for ResNet-50, 8 % for ViTs."""

SIMCLR = Recipe(
    crop_scale=(0.08, 1.0),
    grayscale_first=False,
    jitter_p=0.8,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    blur_p=0.5,
    bicubic=True,
)
"""Both views of SimCLR at color strength 1, with two differences. SimCLR's blur kernel is a tenth of the image; here it
is Pillow's blur with the same range of radius, as in MoCo v2. SimCLR resizes with TensorFlow's bicubic filter, which
does not antialias; here Pillow's does."""

MAX_RESIZED_PX = 2**24
"""Pixels of a whole resized image, of which an evaluation keeps the central square. Of an image that would have more,
and more than four such squares, the square alone is resized."""

CROP_AND_FLIP = Recipe(
    crop_scale=(0.08, 1.0),
    grayscale_first=False,
    jitter_p=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    hue=0.0,
    grayscale_p=0.0,
    blur_p=0.0,
)
"""Augmentation for training linear classifiers and for fine-tuning (moco/main_lincls.py)."""


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Drawn parameters of the color jitter."""

    order: tuple[int, ...]
    """Permutation of (0 brightness, 1 contrast, 2 saturation, 3 hue)."""
    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclass(frozen=True, kw_only=True)
class ViewParams:
    """Drawn parameters of one view; the defaults change nothing."""

    crop: tuple[int, int, int, int]
    """(top, left, height, width) in pixels."""
    jitter: Jitter | None = None
    grayscale: bool = False
    grayscale_first: bool = False
    blur_radius_px: float | None = None
    flip: bool = False
    solarize: bool = False
    bicubic: bool = False

    def crop_only(self) -> "ViewParams":
        """Return parameters with the same crop and no other operation."""
        return ViewParams(crop=self.crop, bicubic=self.bicubic)


def draw_params(recipe: Recipe, rng: np.random.Generator, *, height: int, width: int) -> ViewParams:
    """Draw the parameters of one view of an image of `height` x `width` pixels."""
    return ViewParams(
        crop=_draw_crop(recipe, rng, height, width),
        jitter=_draw_jitter(recipe, rng) if rng.random() < recipe.jitter_p else None,
        grayscale=rng.random() < recipe.grayscale_p,
        grayscale_first=recipe.grayscale_first,
        blur_radius_px=_uniform(rng, *recipe.blur_radius_px) if rng.random() < recipe.blur_p else None,
        flip=rng.random() < recipe.flip_p,
        # No draw without solarize: the views of MoCo v1 and v2 must stay those of the first release.
        solarize=recipe.solarize_p > 0 and rng.random() < recipe.solarize_p,
        bicubic=recipe.bicubic,
    )


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a uniform draw at a fifth of the cost of `rng.uniform`; a view needs four or more of them."""
    return low + (high - low) * rng.random()


def _draw_crop(recipe: Recipe, rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw an Inception crop as torchvision's RandomResizedCrop does: ten tries, then the largest central crop."""
    log_ratio = math.log(recipe.crop_ratio[0]), math.log(recipe.crop_ratio[1])
    for _ in range(10):
        area = height * width * _uniform(rng, *recipe.crop_scale)
        ratio = math.exp(_uniform(rng, *log_ratio))
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = rng.integers(height - h + 1)
            left = rng.integers(width - w + 1)
            return int(top), int(left), h, w
    w = min(width, round(height * recipe.crop_ratio[1]))
    h = min(height, round(width / recipe.crop_ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def _draw_jitter(recipe: Recipe, rng: np.random.Generator) -> Jitter:
    def factor(strength: float) -> float:
        return _uniform(rng, max(0.0, 1.0 - strength), 1.0 + strength)

    return Jitter(
        order=tuple(rng.permutation(4).tolist()),
        brightness=factor(recipe.brightness),
        contrast=factor(recipe.contrast),
        saturation=factor(recipe.saturation),
        hue=_uniform(rng, -recipe.hue, recipe.hue),
    )


def apply_params(image: Image.Image, params: ViewParams, *, size_px: int) -> Image.Image:
    """Return the view of an RGB `image` that `params` describes, `size_px` x `size_px`."""
    interpolation = InterpolationMode.BICUBIC if params.bicubic else InterpolationMode.BILINEAR
    image = F.resized_crop(image, *params.crop, [size_px, size_px], interpolation)
    if params.grayscale and params.grayscale_first:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if params.jitter is not None:
        image = _apply_jitter(image, params.jitter)
    if params.grayscale and not params.grayscale_first:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if params.blur_radius_px is not None:
        image = image.filter(ImageFilter.GaussianBlur(radius=params.blur_radius_px))
    if params.solarize:
        image = F.solarize(image, SOLARIZE_FROM)
    if params.flip:
        image = F.hflip(image)
    return image


_JITTER_OPS: tuple[tuple[str, Callable[[Image.Image, float], Image.Image]], ...] = (
    ("brightness", F.adjust_brightness),
    ("contrast", F.adjust_contrast),
    ("saturation", F.adjust_saturation),
    ("hue", F.adjust_hue),
)


def _apply_jitter(image: Image.Image, jitter: Jitter) -> Image.Image:
    for number in jitter.order:
        name, adjust = _JITTER_OPS[number]
        value = getattr(jitter, name)
        if value != (0.0 if name == "hue" else 1.0):  # skip an operation that changes nothing
            image = adjust(image, value)
    return image


def evaluation_crop(image: Image.Image, *, size_px: int, crop_ratio: float) -> Image.Image:
    """Resize the short side to `size_px / crop_ratio` and return the central square (ImageNet: 256, then 224)."""
    short = max(size_px, round(size_px / crop_ratio))
    width, height = image.size
    long = int(short * max(width, height) / min(width, height))  # torchvision's rounding
    if short * long > max(MAX_RESIZED_PX, 4 * short * short):
        return _thin_crop(image, (short, long) if width < height else (long, short), size_px)
    square: Image.Image = F.center_crop(F.resize(image, short, InterpolationMode.BILINEAR), [size_px, size_px])
    return square


def _thin_crop(image: Image.Image, resized: tuple[int, int], size_px: int) -> Image.Image:
    """Return the central square of an image resized to `resized` (width, height), without resizing the rest.

    The whole of 1 x 1,000,000 pixels, resized to a short side of 256, would take 196 GB. A value can differ by 2 of 255
    from the resize of the whole: Pillow rounds between its two passes, and takes them in the order that suits the size.
    """
    spans = [_central_span(side, new, size_px) for side, new in zip(image.size, resized, strict=True)]
    (left, right), (top, bottom) = ((first, last) for first, last, _, _ in spans)
    part = image.crop((left, top, right, bottom))  # small coordinates are exact enough as 32-bit floats
    (x1, x2), (y1, y2) = ((start, stop) for _, _, start, stop in spans)
    return part.resize((size_px, size_px), Image.Resampling.BILINEAR, box=(x1, y1, x2, y2))


def _central_span(side: int, resized: int, size_px: int) -> tuple[int, int, float, float]:
    """Return (first pixel, pixel after the last) that the filter reads, and (start, stop) of the square from there."""
    scale = side / resized
    start = round((resized - size_px) / 2.0) * scale
    stop = start + size_px * scale
    margin = math.ceil(max(scale, 1.0)) + 1
    first = max(0, math.floor(start) - margin)
    return first, min(side, math.ceil(stop) + margin), start - first, min(stop, side) - first
