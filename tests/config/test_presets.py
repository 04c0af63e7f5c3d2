"""Every preset trains, and its loss is its oracle's at each step: the numbers, not merely their fall."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mocokit
from mocokit.config.presets import PRESETS
from mocokit.config.toml import replace_settings
from mocokit.engine.checkpoint import list_checkpoints
from mocokit.run.build import build_batches, build_run
from tests.run_process import final_state, finish, same, start
from tests.small_presets import add_narrow_backbone, remove_narrow_backbone, small
from tests.training_oracles import oracle_losses


@pytest.fixture(autouse=True)
def _narrow_backbone() -> Iterator[None]:
    add_narrow_backbone()
    yield
    remove_narrow_backbone()


ONE_OF_EACH = ["moco-v2-cifar", "end-to-end", "memory-bank", "simclr", "moco-v3-vit-s", "fast-moco"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_preset_trains_with_the_loss_of_its_oracle(name: str, photos: Path, tmp_path: Path) -> None:
    config = small(name, photos)
    mocokit.pretrain(config, out=tmp_path / "run")
    losses = _losses(tmp_path / "run")
    wanted = list(oracle_losses(config))
    assert len(losses) == len(set(losses)) == 20
    assert losses[:3] == pytest.approx(wanted[:3], rel=1e-10)
    assert losses == pytest.approx(wanted, rel=1e-6), "roundings grow along the run"


HARD: dict[str, object] = {"method.hardness": 0.5}
DECOUPLED: dict[str, object] = {"method.decoupled": True}
CROPS: dict[str, object] = {"augment.local_crops": 2, "augment.local_size": 16}
OPTIONS: list[tuple[str, dict[str, object]]] = [
    *((name, CROPS) for name in ONE_OF_EACH if name != "fast-moco"),  # its queries are of patches
    ("moco-v2", {**CROPS, "method.micro_groups": 1}),
    ("end-to-end", {**CROPS, "method.micro_groups": 3, "augment.on": "device"}),
    *((name, settings) for name in ONE_OF_EACH for settings in (HARD, DECOUPLED)),
    ("moco-v2-small", {**HARD, **DECOUPLED}),
    ("moco-v2-small", {"method.patch_grid": 2}),
    ("moco-v2-cifar", {"method.patch_grid": 2}),
    ("moco-v2", {"data.first_image_size": 16}),
    ("fast-moco", {"data.first_image_size": 16, "optim.clip_norm": 0.1}),
]


@pytest.mark.parametrize(("name", "settings"), OPTIONS)
def test_each_option_trains_with_the_loss_of_its_oracle(
    name: str, settings: dict[str, object], photos: Path, tmp_path: Path
) -> None:
    plain = replace_settings(small(name, photos), {"optim.epochs": 2})
    config = replace_settings(plain, settings)
    mocokit.pretrain(config, out=tmp_path / "run")
    losses = _losses(tmp_path / "run")
    wanted = list(oracle_losses(config))
    assert losses[:3] == pytest.approx(wanted[:3], rel=1e-10)
    assert losses == pytest.approx(wanted, rel=1e-7), "roundings grow along the run"
    assert losses[0] != pytest.approx(next(oracle_losses(plain)), rel=1e-6), "the option makes a difference"


def test_growing_views_start_small_and_end_whole(photos: Path, tmp_path: Path) -> None:
    config = replace_settings(small("moco-v2", photos), {"data.first_image_size": 16, "data.image_size": 48})
    parts = build_run(config, torch.device("cpu"))
    sizes = [batch.query.shape[-1] for batch in build_batches(config, parts, start_step=0, total_steps=20)]
    assert sizes == [16] * 5 + [32] * 5 + [48] * 10


def test_recipes_md_has_a_row_for_each_preset() -> None:
    recipes = (Path(__file__).parents[2] / "RECIPES.md").read_text(encoding="utf-8")
    assert [name for name in PRESETS if f"| `{name}` | `" not in recipes] == []


def _losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_each_method_resumes_bit_equal_and_exports_its_backbone(name: str, photos: Path, tmp_path: Path) -> None:
    """A run whose later checkpoints are lost ends as one that went through; optimizer, bank and predictor included."""
    config = replace_settings(small(name, photos), {"optim.epochs": 3, "run.keep_last": 3})
    mocokit.pretrain(config, out=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for path in list_checkpoints(tmp_path / "run" / "checkpoints")[1:]:
        path.unlink()
    assert mocokit.resume(tmp_path / "run").step == 15
    assert same(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))
    assert _losses(tmp_path / "run") == _losses(tmp_path / "whole")
    loaded = mocokit.load_backbone(tmp_path / "run")
    state = final_state(tmp_path / "run")["method"]
    weights = {
        key.removeprefix("encoder_q.backbone."): value
        for key, value in state.items()
        if key.startswith("encoder_q.backbone.")
    }
    assert weights.keys() == loaded.backbone.state_dict().keys()
    for key, value in loaded.backbone.state_dict().items():
        assert torch.equal(value, weights[key].to(value.dtype)), key


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_each_method_trains_in_half_precision_and_says_what_it_knows(name: str, photos: Path, tmp_path: Path) -> None:
    settings: dict[str, object] = {
        "optim.epochs": 2,
        "run.knn_every": 1,
        "run.knn_k": 3,
        "run.precision": "bf16",
        # Patches of 32 px: torch's bfloat16 gradient of a convolution with stride 2 over 1x1 pixels is at times NaN.
        "data.image_size": 64 if name == "fast-moco" else 32,
    }
    result = mocokit.pretrain(replace_settings(small(name, photos), settings), out=tmp_path / "run")
    assert {"loss", "contrast_acc", "mi_bound", "knn_acc"} <= result.metrics.keys()
    resolved = (tmp_path / "run" / "resolved.toml").read_text()
    assert "chance_loss = " in resolved and "[key_recipe]" in resolved


@pytest.mark.dist
@pytest.mark.timeout(600)
def test_no_method_depends_on_the_number_of_ranks(photos: Path, tmp_path: Path) -> None:
    """Float64, 1, 2 and 4 gloo ranks; global BatchNorm spans them all, two groups span two ranks each."""
    losses = {}
    images = tmp_path / "photos.txt"
    images.write_text("\n".join(map(str, sorted(photos.rglob("*.jpg"))[:48])))  # 3 steps of 16
    for ranks in (0, 2, 4):  # 0: without torchrun
        out = tmp_path / str(ranks)
        code, output = finish(start([str(images), str(out)], ranks=ranks, program=("-m", "tests.rank_worker")))
        assert code == 0, output[-3000:]
        losses[ranks] = {run.name: _losses(run) for run in sorted(out.iterdir())}
    assert len(losses[0]) == 16
    for name, wanted in losses[0].items():
        assert len(wanted) == 3
        for ranks in (2, 4):
            assert losses[ranks][name] == pytest.approx(wanted, rel=1e-8), (name, ranks)
