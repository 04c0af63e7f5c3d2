from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mocokit.data import parity
from mocokit.data.augment import resize
from mocokit.data.augment.compiled import apply_params_compiled
from mocokit.data.augment.recipes import AUG_PLUS, Recipe, ViewParams, draw_params
from mocokit.data.parity import draw_parity, parity_images, pixel_parity
from mocokit.data.sources.open_source import open_source

CPU = torch.device("cpu")


def test_all_operations_pass(photos: Path) -> None:
    rows = pixel_parity(parity_images(open_source(photos), count=20, seed=0), device=CPU, seed=1)
    assert all(row.passes for row in rows), [row for row in rows if not row.passes]
    exact = [row for row in rows if "large" not in row.operation]
    assert {row.engine for row in exact} == {"cpu", "batched on cpu"}
    assert max(row.max_error for row in exact) == 0
    assert len(rows) > len(exact)


def test_a_wrong_operation_fails(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = apply_params_compiled

    def darker(image: object, params: ViewParams, **keywords: object) -> None:
        if params.jitter is not None:
            params = replace(params, jitter=replace(params.jitter, brightness=0.98 * params.jitter.brightness))
        right(image, params, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(parity, "apply_params_compiled", darker)
    rows = pixel_parity(parity_images(open_source(photos), count=8, seed=0), device=CPU, seed=1)
    assert {row.operation for row in rows if not row.passes and row.engine == "cpu"} >= {
        "brightness",
        "all of aug+ (v2)",
    }


def test_another_pillows_order_fails_on_tall_crops(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordinary crops of small images are resized alike by all versions; those of the check are not."""
    installed = resize.vertical_first
    monkeypatch.setattr(resize, "vertical_first", lambda *crop: not installed(*crop))
    rows = pixel_parity(parity_images(open_source(photos), count=8, seed=0), device=CPU, seed=1)
    failed = {row.operation for row in rows if not row.passes}
    assert failed >= {"tall crops", "tall crops, bicubic", "wide crops", "wide crops, bicubic"}


def test_draws_have_torchvisions_distributions() -> None:
    rows = draw_parity(AUG_PLUS, num_draws=3000, seed=2)
    assert {row.parameter for row in rows} >= {"crop area", "crop ratio", "hue", "blur radius", "place of 3", "flip"}
    assert all(row.passes for row in rows), rows


@pytest.mark.parametrize(
    ("parameter", "wrong"),
    [
        ("flip", {"flip_p": 0.4}),
        ("hue", {"hue": 0.12}),
        ("crop area", {"crop_scale": (0.08, 1.0)}),
        ("blur radius", {"blur_radius_px": (0.1, 1.8)}),
    ],
)
def test_a_wrong_distribution_fails(parameter: str, wrong: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(recipe: Recipe, rng: np.random.Generator, *, height: int, width: int) -> ViewParams:
        return draw_params(replace(recipe, **wrong), rng, height=height, width=width)  # type: ignore[arg-type]

    monkeypatch.setattr(parity, "draw_params", draw)
    rows = draw_parity(AUG_PLUS, num_draws=3000, seed=2)
    assert parameter in {row.parameter for row in rows if not row.passes}
