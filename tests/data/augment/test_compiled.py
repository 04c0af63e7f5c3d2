"""The compiled operations equal Pillow's and torchvision's in every bit."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torchvision.transforms.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode

from mocokit.data.augment import resize
from mocokit.data.augment.blur import gaussian_blur
from mocokit.data.augment.color import adjust_brightness, adjust_contrast, adjust_saturation, shift_hue, to_grayscale
from mocokit.data.augment.compiled import apply_params_compiled
from mocokit.data.augment.recipes import AUG, AUG_PLUS, MOCO_V3_PAIR, SIMCLR, Recipe, apply_params, draw_params
from mocokit.data.augment.resize import resized_crop, transpose_pixels, vertical_first
from mocokit.randomness import Purpose, generator

Pixels = NDArray[np.uint8]


def _noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Uniform noise on a gradient: every level occurs, and so do ties between channels."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, width)[None, :, None] + rng.normal(0, 40, (height, width, 3))
    return ramp.clip(0, 255).astype(np.uint8)


def _resized(image: Pixels, crop: tuple[float, float, float, float], size_px: int, *, bicubic: bool = False) -> Pixels:
    target = np.empty((size_px, size_px, 3), np.uint8)
    resized_crop(image, crop, target, bicubic=bicubic)
    mirrored = np.empty_like(target)
    resized_crop(image, crop, mirrored, bicubic=bicubic, mirrored=True)
    np.testing.assert_array_equal(mirrored[:, ::-1], target)
    return target


def _planes(image: Pixels) -> Pixels:
    return np.ascontiguousarray(image.transpose(2, 0, 1)).reshape(3, -1)


def _image(planes: Pixels, shape: tuple[int, ...]) -> Pixels:
    return planes.reshape(3, *shape[:2]).transpose(1, 2, 0)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("size_px", [8, 32, 64])
def test_crop_and_resize_equals_pillows_for_wide_tall_small_and_large_crops(size_px: int, bicubic: bool) -> None:
    interpolation = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    image = _noise(97, 131)
    rng = np.random.default_rng(size_px)
    for _ in range(60):
        height = int(rng.integers(1, 98))
        width = int(rng.integers(1, 132))
        crop = int(rng.integers(98 - height)), int(rng.integers(132 - width)), height, width
        pillow = F.resized_crop(Image.fromarray(image), *crop, [size_px, size_px], interpolation)
        ours = _resized(image, crop, size_px, bicubic=bicubic)
        np.testing.assert_array_equal(ours, np.asarray(pillow), str(crop))


VERTICAL_FIRST: dict[tuple[int, int], Callable[[int, int, int], bool]] = {
    (10, 3): lambda height, width, side: False,
    (12, 1): lambda height, width, side: False,
    (12, 2): lambda height, width, side: side < height and height > 100 * width,
    (12, 3): lambda height, width, side: side < height and height > 100 * width,
    (13, 0): lambda height, width, side: height > side and height - side > 2 * (width - side),
    (14, 1): lambda height, width, side: height > side and height - side > 2 * (width - side),
}
"""Pillow's version -> which crops it resizes along their columns first (python-pillow/Pillow, Image.resize: commit
4ef0ac611 in 12.2; 13.0 as measured)."""


@pytest.mark.parametrize("version", sorted(VERTICAL_FIRST))
def test_crops_are_resized_in_any_pillows_order(version: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each order is done by Pillow in two calls of one direction each."""
    monkeypatch.setattr(resize, "vertical_first", partial(vertical_first, pillow=version))
    image = _noise(470, 140)
    side = 24
    for height, width in [(110, 60), (60, 110), (460, 130), (402, 4), (401, 5), (400, 4), (200, 1), (30, 20), (26, 24)]:
        crop = Image.fromarray(image[3 : 3 + height, 2 : 2 + width])
        first = (width, side) if VERTICAL_FIRST[version](height, width, side) else (side, height)
        pillow = crop.resize(first, Image.Resampling.BILINEAR).resize((side, side), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(_resized(image, (3, 2, height, width), side), np.asarray(pillow))


def test_bicubic_overshoots_are_clipped_to_black_and_white() -> None:
    checks = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((4, 4)))[..., None].repeat(3, 2).astype(np.uint8) * 255
    pillow = Image.fromarray(checks).resize((53, 53), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(_resized(checks, (0, 0, 32, 32), 53, bicubic=True), np.asarray(pillow))


def test_a_target_that_is_not_contiguous_is_refused() -> None:
    with pytest.raises(ValueError, match="must be contiguous"):
        resized_crop(_noise(60, 80), (0, 0, 32, 32), np.empty((3, 24, 24), np.uint8).transpose(1, 2, 0))


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 4), (4, 3), (9, 7), (64, 33)])
def test_pixels_of_a_crop_are_transposed_and_padded_to_four(shape: tuple[int, int]) -> None:
    h, w = shape
    image = _noise(70, 40)
    top = 70 - h  # down to the last row and the last pixel: nothing after it may be read
    left = 40 - w
    words = transpose_pixels(image.reshape(-1), 3 * (40 * top + left), 3 * 40, h, w)
    rows = words.view(np.uint8).reshape(w, -1, 3)
    assert rows.shape == (w, (h + 3) // 4 * 4, 3)
    np.testing.assert_array_equal(rows[:, :h], image[top:, left:].transpose(1, 0, 2))


def test_a_crop_between_pixels_equals_pillows_box() -> None:
    image = _noise(60, 80)  # left, top, right, bottom
    box = (10.25, 5.5, 71.75, 43.0)
    pillow = Image.fromarray(image).resize((24, 24), Image.Resampling.BILINEAR, box=box)
    ours = _resized(image, (box[1], box[0], box[3] - box[1], box[2] - box[0]), 24)
    # Pillow stores the box in float32 and reads pixels outside it: only the outermost pixels may differ.
    np.testing.assert_allclose(ours[1:-1, 1:-1].astype(int), np.asarray(pillow)[1:-1, 1:-1], atol=1)


@pytest.mark.parametrize("factor", [0.0, 0.37, 0.6, 0.999, 1.001, 1.4, 1.9, 3.7])
def test_brightness_contrast_and_saturation_equal_torchvisions(factor: float) -> None:
    image = _noise(41, 53)
    for ours, reference in (
        (adjust_brightness, F.adjust_brightness),
        (adjust_contrast, F.adjust_contrast),
        (adjust_saturation, F.adjust_saturation),
    ):
        planes = _planes(image)
        ours(planes, factor)
        expected = np.asarray(reference(Image.fromarray(image), factor))
        np.testing.assert_array_equal(_image(planes, image.shape), expected, reference.__name__)


@pytest.mark.slow
def test_hue_equals_torchvisions_for_all_colors() -> None:
    green, blue = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    for red in range(256):
        image = np.stack([np.full_like(green, red), green, blue], -1).astype(np.uint8)
        hue = 0.5 - red / 255  # each of 256 shifts once
        planes = _planes(image)
        shift_hue(planes, int(hue * 255) % 256)
        expected = np.asarray(F.adjust_hue(Image.fromarray(image), hue))
        np.testing.assert_array_equal(_image(planes, image.shape), expected, f"red {red}")


def test_grayscale_equals_pillows() -> None:
    image = _noise(41, 53)
    planes = _planes(image)
    to_grayscale(planes)
    np.testing.assert_array_equal(
        _image(planes, image.shape), np.asarray(F.rgb_to_grayscale(Image.fromarray(image), 3))
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (8, 8), (37, 64), (224, 224)])
def test_blur_equals_pillows(shape: tuple[int, int]) -> None:
    image = _noise(*shape)
    for radius_px in (0.1, 0.5, 0.9, 1.3, 1.41, 1.42, 1.7, 2.0, 3.3, 9.0):
        expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius_px)))
        np.testing.assert_array_equal(gaussian_blur(image, radius_px), expected, str(radius_px))


@pytest.mark.parametrize("recipe", [AUG, AUG_PLUS, *MOCO_V3_PAIR, SIMCLR], ids=["v1", "v2", "v3q", "v3k", "simclr"])
def test_whole_recipes_equal_the_reference(recipe: Recipe) -> None:
    for number in range(40):
        image = _noise(50 + number, 90 - number, seed=number)
        params = draw_params(recipe, generator(0, Purpose.VIEW, number), height=50 + number, width=90 - number)
        view = np.empty((48, 48, 3), np.uint8)
        apply_params_compiled(image, params, crop=params.crop, target=view)
        np.testing.assert_array_equal(view, np.asarray(apply_params(Image.fromarray(image), params, size_px=48)))
