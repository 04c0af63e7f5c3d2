"""The official numbers, and their conversion to another batch, length and image size."""

from dataclasses import replace

import pytest

from mocokit.detection.recipes import COCO_C4_2X, COCO_FPN_1X, RECIPES, VOC_C4_24K
from mocokit.settings import choose


def test_the_recipes_are_the_official_ones() -> None:
    assert (VOC_C4_24K.iterations, VOC_C4_24K.milestones) == (24_000, (18_000, 22_000))
    assert VOC_C4_24K.warmup_iterations == 100
    assert VOC_C4_24K.train_short_sides_px == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (COCO_C4_2X.iterations, COCO_C4_2X.milestones) == (180_000, (120_000, 160_000))
    assert (COCO_FPN_1X.iterations, COCO_FPN_1X.milestones) == (90_000, (60_000, 80_000))
    assert COCO_C4_2X.train_short_sides_px == COCO_FPN_1X.train_short_sides_px == (640, 672, 704, 736, 768, 800)
    for recipe in RECIPES.values():
        assert (recipe.batch_size, recipe.lr, recipe.weight_decay, recipe.sgd_momentum) == (16, 0.02, 1e-4, 0.9)
        assert (recipe.test_short_side_px, recipe.max_long_side_px) == (800, 1333)
        assert recipe.precise_bn_iterations == 200
        assert recipe.regions_per_image == 512
    assert VOC_C4_24K.rpn_before_nms == COCO_C4_2X.rpn_before_nms == (12_000, 6000)
    assert VOC_C4_24K.rpn_after_nms == (2000, 1000)
    assert [recipe.masks for recipe in RECIPES.values()] == [False, True, True]


def test_half_the_batch_means_half_the_rate_and_twice_the_steps() -> None:
    half = VOC_C4_24K.rescaled(8)
    assert (half.batch_size, half.lr) == (8, 0.01)
    assert (half.iterations, half.milestones) == (48_000, (36_000, 44_000))
    assert half.warmup_iterations == 200
    assert half.rescaled(16) == VOC_C4_24K
    two = COCO_FPN_1X.rescaled(2)
    assert two.lr == pytest.approx(0.0025)
    assert two.iterations * two.batch_size == 90_000 * 16  # the same number of images


def test_the_rate_warms_up_and_falls_in_two_steps() -> None:
    lr = VOC_C4_24K.lr_of
    assert lr(0) == pytest.approx(0.02e-3)
    assert lr(50) == pytest.approx(0.02 * (0.5e-3 + 0.5))
    assert lr(100) == lr(17_999) == pytest.approx(0.02)
    assert lr(18_000) == lr(21_999) == pytest.approx(0.002)
    assert lr(22_000) == lr(23_999) == pytest.approx(0.0002)
    assert all(lr(i) < lr(i + 1) for i in range(100))
    assert replace(VOC_C4_24K, warmup_iterations=0).lr_of(0) == 0.02


def test_a_shorter_run_keeps_the_shape() -> None:
    short = VOC_C4_24K.shortened(240)
    assert short.milestones == (180, 220)
    assert (short.warmup_iterations, short.precise_bn_iterations) == (24, 200)
    assert VOC_C4_24K.shortened(60).precise_bn_iterations == 60
    assert VOC_C4_24K.shortened(24_000) == VOC_C4_24K


def test_smaller_images_have_smaller_anchors() -> None:
    small = VOC_C4_24K.at_short_side(200)
    assert small.train_short_sides_px == (120, 128, 136, 144, 152, 160, 168, 176, 184, 192, 200)
    assert list(small.anchor_sizes_px) == [8, 16, 32, 64, 128]
    assert (small.test_short_side_px, small.max_long_side_px) == (200, 333)
    assert VOC_C4_24K.at_short_side(800) == VOC_C4_24K


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="recipe='voc-c4': unknown; did you mean voc-c4-24k"):
        choose("recipe", "voc-c4", RECIPES)
    with pytest.raises(ValueError, match="batch=0: must be at least 1"):
        VOC_C4_24K.rescaled(0)
    with pytest.raises(ValueError, match="iterations=0: must be at least 1"):
        VOC_C4_24K.shortened(0)
    with pytest.raises(ValueError, match="short_side=8: must be at least 32 pixels"):
        VOC_C4_24K.at_short_side(8)
