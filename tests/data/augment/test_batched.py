"""The batched augmentation equals Pillow's and torchvision's in every pixel."""

import itertools
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from mocokit.data.augment.batched import MAX_STEP_IMAGES, Op, augment_batch, pack_params
from mocokit.data.augment.compiled import NO_JITTER
from mocokit.data.augment.recipes import (
    AUG,
    AUG_PLUS,
    MOCO_V3_PAIR,
    Jitter,
    Recipe,
    ViewParams,
    apply_params,
    draw_params,
)

STILL = ViewParams(crop=(0, 0, 0, 0))
FACTORS = (0.0, 0.3, 0.6, 0.77, 0.999, 1.001, 1.2, 1.4, 2.5)


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Image.Image]:
    """20 photographs, noise, gradients of hue and of gray, and flat gray, 48x48."""
    tiles = [Image.open(path).convert("RGB") for path in sorted(photos.rglob("*.jpg"))[::4]]
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, 48).astype(np.uint8), (48, 48))
    hues = np.stack([ramp, 255 - ramp, ramp.T], axis=-1)
    grays = np.stack([ramp, ramp, ramp], axis=-1)
    return [*tiles, *map(Image.fromarray, (noise, hues, grays)), Image.new("RGB", (48, 48), (128, 128, 128))]


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    """(n, 3, S, S) uint8 in channels_last memory, as the data pipeline has it."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def _one_by_one(images: Sequence[Image.Image], params: Sequence[ViewParams]) -> Tensor:
    """The reference: `apply_params` with a crop that changes nothing."""
    size = images[0].width
    whole = [replace(view, crop=(0, 0, size, size)) for view in params]
    return _pixels([apply_params(image, view, size_px=size) for image, view in zip(images, whole, strict=True)])


def _assert_equals_one_by_one(images: Sequence[Image.Image], params: Sequence[ViewParams]) -> None:
    got = augment_batch(_pixels(images), pack_params(params))
    torch.testing.assert_close(got, _one_by_one(images, params), rtol=0, atol=0)


def _draws(recipe: Recipe, count: int, seed: int = 0) -> list[ViewParams]:
    rng = np.random.default_rng(seed)
    return [draw_params(recipe, rng, height=48, width=48) for _ in range(count)]


@pytest.mark.parametrize("size", [8, 32, 37, 48])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_blend_is_pillows(pictures: list[Image.Image], name: str, size: int) -> None:
    images = [picture.resize((size, size)) for picture in pictures]
    for factor in FACTORS:
        jitter = replace(NO_JITTER, **{name: factor})  # type: ignore[arg-type]
        _assert_equals_one_by_one(images, [replace(STILL, jitter=jitter)] * len(images))


@pytest.mark.parametrize("hue", [-0.5, -0.4, -0.1, -0.05, -1e-3, 1e-3, 0.02, 0.1, 0.4, 0.5])
def test_hue_is_torchvisions(pictures: list[Image.Image], hue: float) -> None:
    jitter = replace(NO_JITTER, hue=hue)
    _assert_equals_one_by_one(pictures, [replace(STILL, jitter=jitter)] * len(pictures))


@pytest.mark.parametrize("hue", [1e-3, 0.3])
def test_hue_is_torchvisions_for_every_color(hue: float) -> None:
    green, blue = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    params = [replace(STILL, jitter=replace(NO_JITTER, hue=hue))] * 8
    for start in range(0, 256, 8):
        reds = range(start, start + 8)
        colors = [np.stack([np.full_like(green, red), green, blue], axis=-1) for red in reds]
        _assert_equals_one_by_one([Image.fromarray(color) for color in colors], params)


@pytest.mark.parametrize("size", [8, 32, 37, 48])
def test_grayscale_solarize_and_flip_are_pillows(pictures: list[Image.Image], size: int) -> None:
    images = [picture.resize((size, size)) for picture in pictures]
    _assert_equals_one_by_one(images, [replace(STILL, grayscale=True)] * len(images))
    _assert_equals_one_by_one(images, [replace(STILL, solarize=True)] * len(images))
    _assert_equals_one_by_one(images, [replace(STILL, flip=True)] * len(images))


@pytest.mark.parametrize("size", [1, 3, 8, 32, 37])
def test_blur_is_pillows_for_small_and_large_radii(pictures: list[Image.Image], size: int) -> None:
    images = [picture.resize((size, size)) for picture in pictures]
    radii = [0.0, *np.linspace(0.1, 6, len(images) - 2), 10.0]
    _assert_equals_one_by_one(images, [replace(STILL, blur_radius_px=float(radius)) for radius in radii])


def test_blur_weights_are_pillows_over_the_recipes_whole_range() -> None:
    edge = Image.fromarray(np.repeat(np.repeat(np.eye(9, dtype=np.uint8)[..., None] * 255, 3, axis=2), 3, axis=1))
    edge = edge.resize((24, 24))
    radii = np.random.default_rng(0).uniform(*AUG_PLUS.blur_radius_px, 300)
    _assert_equals_one_by_one([edge] * 300, [replace(STILL, blur_radius_px=float(radius)) for radius in radii])


def test_each_image_is_jittered_in_its_own_order(pictures: list[Image.Image]) -> None:
    orders = list(itertools.permutations(range(4)))
    jitter = Jitter(order=(0, 1, 2, 3), brightness=1.3, contrast=1.4, saturation=0.6, hue=-0.07)
    params = [replace(STILL, jitter=replace(jitter, order=order)) for order in orders]
    images = [pictures[5]] * len(orders)
    _assert_equals_one_by_one(images, params)
    assert len(augment_batch(_pixels(images), pack_params(params)).flatten(1).unique(dim=0)) > 12


@pytest.mark.parametrize(
    "recipe", [AUG, AUG_PLUS, *MOCO_V3_PAIR, replace(AUG_PLUS, grayscale_p=1.0, blur_p=1.0, jitter_p=1.0)]
)
def test_whole_recipes_equal_the_image_by_image_augmentation(pictures: list[Image.Image], recipe: Recipe) -> None:
    images = [pictures[row % len(pictures)] for row in range(300)]
    _assert_equals_one_by_one(images, _draws(recipe, 300))


def test_images_need_not_be_square(pictures: list[Image.Image]) -> None:
    image = pictures[3].resize((53, 37))
    jitter = Jitter(order=(2, 0, 3, 1), brightness=0.8, contrast=1.1, saturation=0.9, hue=0.05)
    params = replace(STILL, jitter=jitter, blur_radius_px=1.7, flip=True)
    want = F.adjust_hue(F.adjust_brightness(F.adjust_saturation(image, 0.9), 0.8), 0.05)
    want = F.hflip(F.adjust_contrast(want, 1.1).filter(ImageFilter.GaussianBlur(1.7)))
    assert augment_batch(_pixels([image]), pack_params([params])).equal(_pixels([want]))


def test_nothing_happens_with_probability_zero(pictures: list[Image.Image]) -> None:
    never = replace(AUG_PLUS, jitter_p=0.0, grayscale_p=0.0, blur_p=0.0, flip_p=0.0)
    params = pack_params(_draws(never, len(pictures)))
    assert params.steps == ()
    assert augment_batch(_pixels(pictures), params).equal(_pixels(pictures))


def test_a_jitter_of_strength_zero_changes_no_pixel(pictures: list[Image.Image]) -> None:
    still = replace(AUG_PLUS, jitter_p=1.0, brightness=0, contrast=0, saturation=0, hue=0, blur_p=0.0, grayscale_p=0.0)
    steps = pack_params(_draws(still, 100)).steps
    assert {step.op for step in steps} == {Op.FLIP}


def test_an_image_does_not_depend_on_its_neighbors_and_the_input_is_unchanged(pictures: list[Image.Image]) -> None:
    params = _draws(AUG_PLUS, len(pictures), seed=3)
    pixels = _pixels(pictures)
    before = pixels.clone()
    together = augment_batch(pixels, pack_params(params))
    assert pixels.equal(before)
    backwards = augment_batch(pixels.flip(0), pack_params(params[::-1]))
    assert backwards.flip(0).equal(together)
    alone = [augment_batch(pixels[row : row + 1], pack_params(params[row : row + 1])) for row in range(len(params))]
    assert torch.cat(alone).equal(together)


def test_steps_have_bounded_size_and_contain_each_image_once() -> None:
    flips = [replace(STILL, flip=True, blur_radius_px=1.0)] * (2 * MAX_STEP_IMAGES + 3)
    params = pack_params(flips)
    assert [step.stop - step.start for step in params.steps] == [MAX_STEP_IMAGES, MAX_STEP_IMAGES, 3] * 2
    assert params.rows.tolist() == list(range(len(flips))) * 2


def test_parameters_survive_pickling_and_moving_to_a_device(pictures: list[Image.Image]) -> None:
    params = pack_params(_draws(AUG_PLUS, len(pictures)))
    arrived = pickle.loads(pickle.dumps(params)).to(torch.device("cpu"))
    assert augment_batch(_pixels(pictures), arrived).equal(augment_batch(_pixels(pictures), params))


def test_an_empty_batch_stays_empty() -> None:
    assert augment_batch(torch.empty(0, 3, 8, 8, dtype=torch.uint8), pack_params([])).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 3, 8, 8, dtype=torch.uint8)])
def test_images_that_do_not_fit_the_parameters_are_an_error(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be \(2, 3, S, S\) uint8"):
        augment_batch(images, pack_params([STILL] * 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("recipe", [AUG, AUG_PLUS, replace(AUG_PLUS, blur_p=1.0, blur_radius_px=(0.1, 6.0))])
def test_cuda_equals_cpu_and_never_waits(pictures: list[Image.Image], recipe: Recipe) -> None:
    images = [pictures[row % len(pictures)] for row in range(300)]
    params = pack_params(_draws(recipe, 300))
    device = torch.device("cuda")
    pixels = _pixels(images).to(device)
    on_device = params.pin_memory().to(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = augment_batch(pixels, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert got.cpu().equal(augment_batch(_pixels(images), params))
