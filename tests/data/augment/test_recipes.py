"""Probabilities and ranges of every draw, and every operation against torchvision and Pillow, pixel by pixel."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms

from mocokit.data.augment.recipes import (
    AUG,
    AUG_PLUS,
    MOCO_V3_PAIR,
    SIMCLR,
    Jitter,
    Recipe,
    ViewParams,
    apply_params,
    draw_params,
    evaluation_crop,
)

DRAWS = 2000
STILL = ViewParams(crop=(0, 0, 100, 150))


def _draws(recipe: Recipe, count: int = DRAWS) -> list[ViewParams]:
    rng = np.random.default_rng(0)
    return [draw_params(recipe, rng, height=100, width=150) for _ in range(count)]


def _in_band(hits: int, p: float) -> bool:
    """Within 4 sigma of the binomial; exactly for p 0 and 1."""
    return abs(hits - DRAWS * p) <= 4 * math.sqrt(DRAWS * p * (1 - p))


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("name", ["jitter_p", "grayscale_p", "blur_p", "flip_p", "solarize_p"])
def test_each_operation_is_applied_with_its_probability(name: str, p: float) -> None:
    happened = {
        "jitter_p": lambda params: params.jitter is not None,
        "grayscale_p": lambda params: params.grayscale,
        "blur_p": lambda params: params.blur_radius_px is not None,
        "flip_p": lambda params: params.flip,
        "solarize_p": lambda params: params.solarize,
    }[name]
    assert _in_band(sum(map(happened, _draws(replace(AUG_PLUS, **{name: p})))), p)  # type: ignore[arg-type]


def test_recipes_are_the_papers() -> None:
    assert (AUG.jitter_p, AUG.grayscale_p, AUG.blur_p, AUG.flip_p) == (1.0, 0.2, 0.0, 0.5)
    assert (AUG.brightness, AUG.contrast, AUG.saturation, AUG.hue) == (0.4, 0.4, 0.4, 0.4)
    assert AUG.grayscale_first
    assert (AUG_PLUS.jitter_p, AUG_PLUS.grayscale_p, AUG_PLUS.blur_p, AUG_PLUS.flip_p) == (0.8, 0.2, 0.5, 0.5)
    assert (AUG_PLUS.brightness, AUG_PLUS.contrast, AUG_PLUS.saturation, AUG_PLUS.hue) == (0.4, 0.4, 0.4, 0.1)
    assert not AUG_PLUS.grayscale_first
    assert AUG_PLUS.blur_radius_px == (0.1, 2.0)
    assert AUG.crop_scale == AUG_PLUS.crop_scale == (0.2, 1.0)


def test_ranges_are_uniform_over_the_whole_interval() -> None:
    draws = _draws(replace(AUG_PLUS, jitter_p=1.0, blur_p=1.0))
    ranges = {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.6, 1.4),
        "hue": (-0.1, 0.1),
    }
    values = {name: [getattr(params.jitter, name) for params in draws] for name in ranges}
    ranges["blur"] = (0.1, 2.0)
    values["blur"] = [params.blur_radius_px for params in draws]
    for name, (low, high) in ranges.items():
        sample = np.array(values[name], float)
        assert low <= sample.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < sample.max() <= high
        assert abs(sample.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * DRAWS)


def test_jitter_operations_come_in_every_order_equally_often() -> None:
    orders = [params.jitter.order for params in _draws(replace(AUG_PLUS, jitter_p=1.0)) if params.jitter]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24
    assert max(abs(count - DRAWS / 24) for count in counts) < 4 * math.sqrt(DRAWS / 24)


def test_crops_are_distributed_as_torchvisions() -> None:
    ours = np.array([params.crop for params in _draws(AUG_PLUS)], float)
    torch.manual_seed(0)
    image = Image.new("RGB", (150, 100))
    get_params = transforms.RandomResizedCrop.get_params
    theirs = np.array([get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(DRAWS)], float)
    for column in range(4):
        error = math.sqrt((ours[:, column].var() + theirs[:, column].var()) / DRAWS)
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 4 * error
        assert abs(ours[:, column].std() / theirs[:, column].std() - 1) < 0.08
    assert (ours[:, 0] + ours[:, 2]).max() == 100, "a crop may touch each border"
    assert (ours[:, 1] + ours[:, 3]).max() == 150


def test_a_crop_that_never_fits_is_the_largest_central_one() -> None:
    params = draw_params(AUG_PLUS, np.random.default_rng(0), height=10, width=1000)
    assert params.crop == (0, 493, 10, 13)


def _same(ours: Image.Image, theirs: Image.Image) -> bool:
    return np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_crop_and_resize_are_torchvisions(photograph: Image.Image) -> None:
    params = replace(STILL, crop=(7, 20, 60, 51))
    want = transforms.functional.resized_crop(photograph, 7, 20, 60, 51, [32, 32])
    assert _same(apply_params(photograph, params, size_px=32), want)
    pil = photograph.crop((20, 7, 71, 67)).resize((32, 32), Image.Resampling.BILINEAR)
    assert _same(apply_params(photograph, params, size_px=32), pil)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_jitter_is_torchvisions_in_the_drawn_order(photograph: Image.Image, order: tuple[int, ...]) -> None:
    params = replace(STILL, jitter=Jitter(order=order, brightness=1.3, contrast=0.7, saturation=1.2, hue=-0.07))
    want = transforms.functional.resized_crop(photograph, 0, 0, 100, 150, [64, 64])
    f = transforms.functional
    ops = [
        lambda x: f.adjust_brightness(x, 1.3),
        lambda x: f.adjust_contrast(x, 0.7),
        lambda x: f.adjust_saturation(x, 1.2),
        lambda x: f.adjust_hue(x, -0.07),
    ]
    for number in order:
        want = ops[number](want)
    assert _same(apply_params(photograph, params, size_px=64), want)


def test_grayscale_blur_and_flip_are_torchvisions_and_pillows(photograph: Image.Image) -> None:
    plain = apply_params(photograph, STILL, size_px=64)
    gray = transforms.Grayscale(num_output_channels=3)(plain)
    assert _same(apply_params(photograph, replace(STILL, grayscale=True), size_px=64), gray)
    blurred = plain.filter(ImageFilter.GaussianBlur(radius=1.3))
    assert _same(apply_params(photograph, replace(STILL, blur_radius_px=1.3), size_px=64), blurred)
    flipped = plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert _same(apply_params(photograph, replace(STILL, flip=True), size_px=64), flipped)


def test_v1_grays_before_the_jitter_and_aug_plus_after(photograph: Image.Image) -> None:
    jitter = Jitter(order=(0, 1, 2, 3), brightness=1.0, contrast=1.0, saturation=1.4, hue=0.3)
    plain = apply_params(photograph, STILL, size_px=64)
    jittered = apply_params(photograph, replace(STILL, jitter=jitter), size_px=64)
    gray = transforms.Grayscale(num_output_channels=3)
    first = apply_params(photograph, replace(STILL, jitter=jitter, grayscale=True, grayscale_first=True), size_px=64)
    last = apply_params(photograph, replace(STILL, jitter=jitter, grayscale=True), size_px=64)
    assert _same(first, gray(plain)), "a gray image has neither saturation nor hue to change"
    assert _same(last, gray(jittered))
    assert not _same(first, last)


def test_everything_at_once_is_the_official_composition(photograph: Image.Image) -> None:
    jitter = Jitter(order=(2, 0, 3, 1), brightness=0.8, contrast=1.1, saturation=0.9, hue=0.05)
    params = ViewParams(crop=(5, 9, 80, 90), jitter=jitter, grayscale=True, blur_radius_px=0.9, flip=True)
    f = transforms.functional
    x = f.resized_crop(photograph, 5, 9, 80, 90, [48, 48])
    x = f.adjust_contrast(f.adjust_hue(f.adjust_brightness(f.adjust_saturation(x, 0.9), 0.8), 0.05), 1.1)
    x = transforms.Grayscale(3)(x).filter(ImageFilter.GaussianBlur(radius=0.9))
    assert _same(apply_params(photograph, params, size_px=48), f.hflip(x))


def test_evaluation_crop_is_imagenets(photograph: Image.Image) -> None:
    want = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(photograph)
    assert _same(evaluation_crop(photograph, size_px=224, crop_ratio=0.875), want)
    assert evaluation_crop(photograph, size_px=32, crop_ratio=1.0).size == (32, 32)


def test_views_of_moco_v3_differ_in_blur_and_solarize() -> None:
    """recipes: query always blurred, key one in ten; key solarized one in five; saturation 0.2, hue 0.1."""
    query, key = MOCO_V3_PAIR
    assert replace(key, blur_p=query.blur_p, solarize_p=query.solarize_p) == query
    assert (query.blur_p, query.solarize_p, key.blur_p, key.solarize_p) == (1.0, 0.0, 0.1, 0.2)
    assert (query.brightness, query.contrast, query.saturation, query.hue) == (0.4, 0.4, 0.2, 0.1)
    assert _in_band(sum(params.solarize for params in _draws(key)), 0.2)
    assert not any(params.solarize for params in _draws(query))


def test_solarize_is_pillows(photograph: Image.Image) -> None:
    size = photograph.size[1]
    crop = photograph.crop((0, 0, size, size))
    params = replace(STILL, crop=(0, 0, size, size), solarize=True)
    assert apply_params(crop, params, size_px=size).tobytes() == ImageOps.solarize(crop).tobytes()


def test_simclr_crops_are_bicubic_and_its_colors_twice_as_strong(photograph: Image.Image) -> None:
    params = _draws(SIMCLR, 1)[0]
    assert params.bicubic
    view = apply_params(photograph, replace(STILL, crop=(10, 20, 60, 70), bicubic=True), size_px=32)
    want = photograph.crop((20, 10, 90, 70)).resize((32, 32), Image.Resampling.BICUBIC)
    assert view.tobytes() == want.tobytes()
    assert (SIMCLR.brightness, SIMCLR.contrast, SIMCLR.saturation, SIMCLR.hue) == (0.8, 0.8, 0.8, 0.2)


def test_solarize_takes_no_draw_from_recipes_without_it() -> None:
    """The views of MoCo v1 and v2 are those of the first release."""
    rng = np.random.default_rng(5)
    reference = np.random.default_rng(5)
    draw_params(AUG_PLUS, rng, height=100, width=150)
    draw_params(replace(AUG_PLUS, solarize_p=0.5), reference, height=100, width=150)
    reference_draws = reference.bit_generator.state["state"]
    rng.random()
    assert rng.bit_generator.state["state"] == reference_draws
