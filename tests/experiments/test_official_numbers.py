"""Every number of every preset against the official code's: 0 unexplained differences."""

import dataclasses

import pytest
from official_numbers import PAGE, Row, describe_layers, is_equal, our_value, read_rows, render
from torch import nn

from mocokit.config.presets import PRESETS, get_preset
from mocokit.config.schema import AugmentConfig, ignored_settings
from mocokit.config.toml import to_dict
from mocokit.data.augment.recipes import Recipe

ROWS = list(read_rows())

OFFICIAL = {"data": {"image_size", "global_batch_size", "mean", "std"}, "run": {"precision"}}
"""Settings of these tables that the official code has; the others say where images are, and what the machine does."""

MACHINE = {"augment": {"on"}, "method": {"name", "micro_groups"}}
"""Settings of the other tables that change no step of a run."""

OFF: dict[str, object] = {
    "data.first_image_size": 0,
    "augment.local_crops": 0,
    "augment.recipe": "moco",
    "augment.aug_plus": True,
    "model.vit_init": "timm",
    "model.freeze_patch_embed": False,
    "model.predictor_width": None,
    "method.decoupled": False,
    "method.hardness": 0.0,
    "method.patch_grid": 1,
    "method.mask_same_image": False,
    "method.symmetric": False,
    "optim.clip_norm": 0.0,
    "optim.warmup_from": 0.0,
    "optim.predictor_lr": "scheduled",
}
"""Options that are off: a preset that has this value needs no row for it."""


def _id(row: Row) -> str:
    return f"{row.preset}: {row.name}"


@pytest.mark.parametrize("preset", list(PRESETS))
def test_ours_equals_the_official_number_or_the_row_says_why_not(preset: str) -> None:
    unexplained = []
    for row in ROWS:
        if row.preset != preset:
            continue
        if not row.is_measured:
            assert row.why, f"{_id(row)}: neither measured nor explained"
            continue
        ours = our_value(row.preset, row.name)
        if is_equal(ours, row.official) == bool(row.why):
            unexplained.append(f"{_id(row)}: official {row.official}, ours {ours}, why: {row.why or '-'}")
    assert unexplained == []


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_setting_of_a_preset_has_a_row(preset: str) -> None:
    config = get_preset(preset)
    known = {row.name for row in ROWS if row.preset == preset}
    ignored = ignored_settings(config)
    for section, values in to_dict(config).items():
        for name, value in values.items():
            setting = f"{section}.{name}"
            if name in MACHINE.get(section, set()) or name not in OFFICIAL.get(section, {name}) or setting in ignored:
                continue
            if setting in OFF and OFF[setting] == value:
                continue
            if section == "augment" and name in {field.name for field in dataclasses.fields(Recipe)}:
                continue  # its value is that of the view, below
            if setting == "optim.milestones" and config.optim.schedule != "step":
                continue
            assert setting in known, f"{preset}: {setting}={value}"
    of_view = {"query.blur_radius_px"} if our_value(preset, "query.blur_p") == 0 else set[str]()
    wanted = {f"query.{field.name}" for field in dataclasses.fields(Recipe)} - of_view
    assert wanted <= known
    assert known & {"key.all", "key.others"}, "and of the key view"
    assert {"net.head", "net.bn_eps", "net.ln_eps", "loss.factor", "optimizer.not_decayed"} - {"net.ln_eps"} <= known


def test_every_preset_has_one_row_for_each_name() -> None:
    names = [_id(row) for row in ROWS]
    assert len(names) == len(set(names))
    assert {row.preset for row in ROWS} == set(PRESETS)
    assert all(row.where and row.source for row in ROWS)


def test_numbers_are_told_apart() -> None:
    assert is_equal((0.2, 1.0), [0.2, 1])
    assert not is_equal((0.2, 1.0), [0.08, 1])
    assert not is_equal(True, False)
    assert not is_equal(1e-4, 1e-6)
    assert describe_layers(nn.Linear(3, 2)) == "Linear 3-2"
    layers = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2, affine=False), nn.ReLU())
    assert describe_layers(layers) == "Linear 3-2 (no bias), BatchNorm (no scale, no shift), ReLU"
    assert isinstance(AugmentConfig().recipe, str)


def test_the_page_in_docs_is_that_of_the_presets() -> None:
    """If this fails: python experiments/official_numbers.py."""
    assert PAGE.read_text(encoding="utf-8") == render()
