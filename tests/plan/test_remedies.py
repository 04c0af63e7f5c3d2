"""The planner's advice has an effect, and RECIPES' commands fit by their own plan."""

import re
from pathlib import Path

import pytest

from mocokit.cli import main
from mocokit.config.presets import PRESETS, get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.plan.cost_model import plan
from mocokit.plan.remedies import remedies

IMAGENET = 1_281_167

LARGE = {"model.arch": "resnet10_w64", "data.image_size": 64}


def _too_large(preset: str, **settings: object) -> Config:
    """A run of which one L4 does not hold the activations."""
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    return replace_settings(get_preset(preset), {**LARGE, "run.precision": "fp32", **dotted})


def _helps(config: Config, world_size: int = 1) -> list[str]:
    assert not plan(config, device="L4", world_size=world_size, num_images=IMAGENET).fits
    return remedies(config, device="L4", world_size=world_size, num_images=IMAGENET)


@pytest.mark.parametrize("preset", ["moco-v2", "end-to-end"])
def test_fewer_groups_at_a_time_are_advised_where_a_rank_has_several(preset: str) -> None:
    config = _too_large(preset, data__global_batch_size=16384)
    line = _helps(config)[0]
    found = re.fullmatch(r"--method.micro-groups (\d): ([\d.]+) GB", line)
    assert found, line
    made = plan(
        replace_settings(config, {"method.micro_groups": int(found[1])}), device="L4", world_size=1, num_images=IMAGENET
    )
    assert made.fits
    assert f"{sum(made.memory_bytes.values()) / 1e9:.1f}" == found[2]


@pytest.mark.parametrize("preset", ["simclr", "moco-v3-r50-100ep"])
def test_global_batchnorm_can_not_be_computed_in_parts_so_more_devices_are_advised(preset: str) -> None:
    lines = _helps(_too_large(preset, data__global_batch_size=32768))
    assert not any("micro-groups" in line for line in lines)
    assert re.fullmatch(r"--devices \d+xL4: [\d.]+ GB", lines[-1])


def test_a_rank_with_one_group_gets_no_advice_of_micro_groups() -> None:
    lines = _helps(_too_large("end-to-end", data__global_batch_size=8 * 32768), world_size=8)
    assert not any("micro-groups" in line for line in lines)


def test_the_command_says_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--arch", "resnet10_w64", "--image-size", "64", "--precision", "fp32", "--global-batch-size", "32768"]
    assert main(["plan", "simclr", "--devices", "1xL4", *flags]) == 0
    text = capsys.readouterr().out
    assert "TOO MUCH" in text
    assert "micro-groups" not in text
    assert re.search(r"what fits, with the same numbers:\n  --devices \d+xL4: ", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_command_of_recipes_fits_h100s_by_its_own_plan(name: str) -> None:
    recipes = (Path(__file__).parents[2] / "RECIPES.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{name}` \| `(\w+) pretrain {name} ", recipes, re.MULTILINE)
    assert row, "no command"
    ranks = {"mocokit": 1, "LAUNCH": 8, "LAUNCH2": 16}[row[1]]
    assert plan(get_preset(name), device="H100", world_size=ranks, num_images=IMAGENET).fits
