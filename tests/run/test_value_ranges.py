"""A run on images of more than 8 bits keeps one value range, from the first step to the exported weights."""

import io
import shutil
import tarfile
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mocokit
from mocokit.config.schema import Config
from mocokit.data.decode.deep import GIVEN
from mocokit.data.packing.pack import pack
from mocokit.data.sources.limits import MAX_IMAGE_PX
from mocokit.engine.backbone_file import load_backbone
from mocokit.engine.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from mocokit.evaluate.baselines import view_of
from mocokit.evaluate.report_knn import compare_with_baselines
from mocokit.evaluate.splits import open_labelled
from mocokit.run.export import export_run

Tiny = Callable[..., Config]


@pytest.fixture(scope="module")
def xrays(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs as 16-bit gray PNG files with values 0 to 4080, as 12-bit detectors write them."""
    folder = tmp_path_factory.mktemp("xrays")
    for path in sorted(photos.rglob("*.jpg")):
        gray = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        target = folder / path.relative_to(photos).with_suffix(".png")
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(gray).save(target)
    return folder


@pytest.fixture(scope="module")
def run(xrays: Path, tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A run of one epoch on `xrays` whose mean and deviation are measured too."""
    folder = tmp_path_factory.mktemp("run") / "run"
    settings: dict[str, object] = {"data.mean": (), "data.std": (), "run.knn_every": 1, "run.knn_k": 5, **SMALL}
    mocokit.pretrain("moco-v2-small", data=xrays, out=folder, settings=settings)
    return folder


SMALL: dict[str, object] = {
    "data.image_size": 32,
    "data.global_batch_size": 16,
    "data.workers": 0,
    "model.arch": "resnet10_w16",
    "model.dim": 16,
    "method.queue_size": 32,
    "method.bn_groups": 2,
    "optim.epochs": 1,
    "run.device": "cpu",
    "run.precision": "fp32",
}


def _resolved(run: Path) -> dict[str, list[float]]:
    ranges: dict[str, list[float]] = tomllib.loads((run / "resolved.toml").read_text())["value_ranges"]
    return ranges


def test_the_range_is_in_the_record_the_checkpoint_and_the_card(run: Path) -> None:
    card = load_backbone(run).card
    low, high = card.value_ranges["uint16"]
    assert 0 <= low < 200
    assert 3900 < high <= 4080
    assert _resolved(run) == {"uint16": [low, high]}
    assert load_checkpoint(list_checkpoints(run / "checkpoints")[-1])["value_ranges"] == {"uint16": (low, high)}
    assert 0.2 < card.mean[0] < 0.8, "measured after the range: else below 1/16"
    assert "uint16 samples" in (run / "log.txt").read_text()


def test_resume_reads_with_the_checkpoints_range(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    state = load_checkpoint(list_checkpoints(copy / "checkpoints")[-1])
    state["value_ranges"] = {"uint16": (7.0, 2000.0)}
    save_checkpoint(copy / "checkpoints", state, step=state["step"], keep_last=1)
    mocokit.resume(copy)
    assert _resolved(copy) == {"uint16": [7.0, 2000.0]}


def test_evaluation_uses_the_cards_range_for_images_of_any_brightness(run: Path, xrays: Path, tmp_path: Path) -> None:
    for path in xrays.rglob("*.png"):
        target = tmp_path / "dark" / path.relative_to(xrays)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(Image.open(path)) // 4).save(target)
    card = load_backbone(run).card
    train, test = open_labelled(tmp_path / "dark", xrays, view_of(card, num_workers=0))
    assert test is not None
    assert train.reader.ranges == test.reader.ranges == card.value_ranges
    assert np.asarray(train.reader.read(0)).max() < 70
    row = compare_with_baselines(run, bank=xrays, baselines=False, num_workers=0, device_name="cpu")[0]
    assert max(row.accuracy.values()) > 0.3, "5 classes"


def test_evaluation_of_a_backbone_without_a_range_measures_one_on_the_training_images(run: Path, xrays: Path) -> None:
    card = replace(load_backbone(run).card, value_ranges={})
    train, _ = open_labelled(xrays, None, view_of(card, num_workers=0))
    assert train.reader.ranges["uint16"][1] > 3900
    assert np.asarray(train.reader.read(0)).max() > 150


def test_an_export_keeps_the_range_and_is_proven_on_deep_images(run: Path, tmp_path: Path) -> None:
    result = export_run(run, to="safetensors", out=tmp_path / "net.safetensors")
    assert result.images.endswith(" images of " + Path(_source_of(run)).name)
    assert load_backbone(tmp_path / "net.safetensors").card.value_ranges == load_backbone(run).card.value_ranges
    assert "Samples of type uint16: " in result.card_files[0].read_text()


def _source_of(run: Path) -> str:
    """Return where the run's images are."""
    source: str = tomllib.loads((run / "config.toml").read_text())["data"]["source"]
    return source


def test_a_given_range_is_used_and_warned_about_if_it_leaves_few_levels(xrays: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "data.value_range": (0.0, 65535.0), "run.knn_every": 0}
    mocokit.pretrain("moco-v2-small", data=xrays, out=tmp_path / "run", settings=settings)
    assert _resolved(tmp_path / "run") == {GIVEN: [0.0, 65535.0]}
    assert "leaves 17 of 256 levels of the uint16 samples" in (tmp_path / "run" / "log.txt").read_text()
    with pytest.raises(ValueError, match=r"data.value_range=\(5.0, 5.0\): needs two numbers LOW < HIGH"):
        mocokit.pretrain("moco-v2-small", data=xrays, out=tmp_path / "b", settings={"data.value_range": (5.0, 5.0)})


def test_a_list_of_deep_pil_images_is_trained_on(xrays: Path, tmp_path: Path) -> None:
    images = [Image.open(path) for path in sorted(xrays.rglob("*.png"))[:32]]
    mocokit.pretrain("moco-v2-small", data=images, out=tmp_path / "run", settings={**SMALL, "run.knn_every": 0})
    assert _resolved(tmp_path / "run")["uint16"][1] > 3000


def test_packing_shrinks_deep_images_by_one_range_and_keeps_the_bytes_of_others(xrays: Path, tmp_path: Path) -> None:
    small = pack(xrays, tmp_path / "small", max_image_px=MAX_IMAGE_PX, short_side_px=24)
    assert small.ranges.ranges["uint16"][1] > 3900
    seen = np.asarray(Image.open(_first_jpeg(tmp_path / "small")))
    assert seen.max() > 150
    whole = pack(xrays, tmp_path / "whole", max_image_px=MAX_IMAGE_PX)
    assert whole.ranges.ranges == {}
    assert (whole.num_images, len(whole.bad)) == (80, 0)


def _first_jpeg(folder: Path) -> io.BytesIO:
    """Return the first image of packed shards as an open file."""
    with tarfile.open(next(folder.glob("*.tar"))) as archive:
        member = next(member for member in archive if member.name.endswith(".jpg"))
        file = archive.extractfile(member)
        assert file is not None
        return io.BytesIO(file.read())
