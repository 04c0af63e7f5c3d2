"""A setting that is left out takes the value of the recipe that is chosen, and every command shows that value."""

import dataclasses

import pytest

from mocokit.cli import main
from mocokit.config.presets import get_preset
from mocokit.config.schema import AugmentConfig
from mocokit.config.toml import from_toml, replace_settings, to_toml
from mocokit.data.augment.recipes import Recipe
from mocokit.methods.fast_moco import FastMoCoSettings
from mocokit.run.build_views import build_recipes

RECIPE_VALUES: dict[str, dict[str, tuple[object, object]]] = {
    "moco": {"crop_scale": ((0.2, 1.0),) * 2, "bicubic": (False,) * 2, "brightness": (0.4,) * 2, "hue": (0.1,) * 2},
    "moco-v3": {
        "crop_scale": ((0.2, 1.0),) * 2,
        "bicubic": (False,) * 2,
        "blur_p": (1.0, 0.1),
        "saturation": (0.2,) * 2,
    },
    "simclr": {"crop_scale": ((0.08, 1.0),) * 2, "bicubic": (True,) * 2, "brightness": (0.8,) * 2, "hue": (0.2,) * 2},
}
"""Recipe -> its own values for both views: main_moco.py of moco and moco-v3, data_util.py of simclr."""


@pytest.mark.parametrize("recipe", sorted(RECIPE_VALUES))
@pytest.mark.parametrize("preset", ["moco-v2", "moco-v1", "simclr", "moco-v3-r50-100ep"])
def test_another_recipe_brings_all_its_values(preset: str, recipe: str) -> None:
    settings: dict[str, object] = {"augment.recipe": recipe}
    if preset == "moco-v1":
        settings["augment.aug_plus"] = True
    views = build_recipes(replace_settings(get_preset(preset), settings).augment)
    for name, values in RECIPE_VALUES[recipe].items():
        assert tuple(getattr(view, name) for view in views) == values, name
    assert {view.blur_radius_px for view in views} == {(0.1, 2.0)}


def test_no_default_of_the_augmentation_hides_the_recipes() -> None:
    """A setting that a recipe has too must be None by default."""
    own = {field.name for field in dataclasses.fields(Recipe)}
    for field in dataclasses.fields(AugmentConfig):
        assert field.name not in own or field.default is None, field.name


def test_a_toml_with_concrete_values_means_them() -> None:
    """Run folders of before: crop_scale and blur_radius_px are written out, the newer settings are missing."""
    text = """
        [augment]
        recipe = "simclr"
        crop_scale = [0.2, 1.0]
        blur_radius_px = [0.3, 1.5]
        [optim]
        warmup_epochs = 3.0
    """
    config = from_toml(text)
    for view in build_recipes(config.augment):
        assert (view.crop_scale, view.blur_radius_px, view.bicubic) == ((0.2, 1.0), (0.3, 1.5), True)
    assert (config.optim.warmup_from, config.optim.lr_end, config.optim.predictor_lr) == (
        0.0,
        "after-last",
        "scheduled",
    )
    assert from_toml(to_toml(config)) == config


def test_a_changed_value_of_a_recipe_survives_toml() -> None:
    config = replace_settings(get_preset("simclr"), {"augment.crop_scale": (0.3, 1.0), "augment.bicubic": False})
    assert from_toml(to_toml(config)) == config
    assert [view.crop_scale for view in build_recipes(config.augment)] == [(0.3, 1.0)] * 2


def test_presets_and_plan_print_the_values_that_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "simclr"]) == 0
    text = capsys.readouterr().out
    assert "# both views: crop_scale 0.08..1," in text
    assert "bicubic true" in text
    assert from_toml(text) == get_preset("simclr"), "comments do no harm"
    small = ["--arch", "resnet10_w16", "--image-size", "32", "--devices", "1xA100"]
    assert main(["plan", "moco-v3-r50-100ep", *small]) == 0
    text = capsys.readouterr().out
    assert "query view: crop_scale 0.2..1," in text
    assert "solarize_p 0.2" in text.partition("key view: ")[2]


def test_another_method_brings_its_own_defaults_and_keeps_what_was_changed() -> None:
    """fast-moco's queries come from patches and its m is 0.99; in moco-v2, neither was chosen."""
    config = replace_settings(get_preset("moco-v2"), {"method.name": "fast-moco"})
    assert config.method == FastMoCoSettings(temperature=0.2, bn_groups=8, key_momentum=0.99, patch_grid=2)
    chosen = replace_settings(get_preset("moco-v2"), {"method.key_momentum": 0.9, "method.hardness": 0.5})
    kept = replace_settings(chosen, {"method.name": "fast-moco"}).method
    assert kept == FastMoCoSettings(key_momentum=0.9, hardness=0.5)
