"""Unreadable images are counted by class and named, in every protocol, and too many stop the evaluation."""

import json
import logging
from pathlib import Path

import pytest
import torch

from mocokit.cli import main
from mocokit.data.sources.open_source import open_source
from mocokit.data.views import ImageReader
from mocokit.evaluate.evaluation import evaluate
from mocokit.evaluate.feature_cache import FeatureCache
from mocokit.evaluate.features import EvaluationView, choose_images, embed_pixels, extract_features
from mocokit.evaluate.report_knn import compare_with_baselines

VIEW = EvaluationView(size_px=16, crop_ratio=1.0, num_workers=0)
CPU = torch.device("cpu")
PROTOCOLS = ("knn", "linear/fast", "linear/moco", "finetune/simclr@100%", "finetune/lr-grid@50%")


def _break(folder: Path, name: str, count: int) -> None:
    """Damage the first images of a class, each in another way."""
    for number, path in enumerate(sorted((folder / name).iterdir())[:count]):
        if number % 3 == 0:
            path.write_bytes(path.read_bytes()[:100])
        elif number % 3 == 1:
            path.write_text("no image")
        else:
            path.write_bytes(b"")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_refuses_a_quarter_of_unreadable_images(run: Path, own_photos: Path, protocol: str) -> None:
    _break(own_photos, "cat", 16)
    message = r"max_bad_share=0\.01: \d+ of \d+ \w+ images can't be read \(\d+ of \d+ of class cat\), for example .*cat"
    with pytest.raises(ValueError, match=message):
        evaluate(
            run,
            data=own_photos,
            protocols=[protocol],
            baselines=False,
            epochs_scale=0.01,
            num_workers=0,
            device_name="cpu",
        )


def test_true_counts_are_recorded_if_they_are_allowed(
    run: Path, own_photos: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _break(own_photos, "cat", 4)
    _break(own_photos, "grass", 1)
    with caplog.at_level(logging.WARNING, logger="mocokit"):
        rows = evaluate(
            run,
            data=photos,
            test=own_photos,
            protocols=("knn", "linear/fast", "linear/moco", "finetune/simclr@100%"),
            baselines=False,
            epochs_scale=0.01,
            num_workers=0,
            device_name="cpu",
            max_bad_share=0.1,
        )
    assert {(row.train_images, row.test_images, row.unreadable) for row in rows} == {(80, 75, 5)}
    lines = [line for line in caplog.messages if "can't be read" in line]
    assert len(lines) == 1, "once, not by each protocol"
    assert lines[0].startswith("5 of 80 test images can't be read (4 of 16 of class cat, 1 of 16 of class grass), for")
    assert "000.jpg" in lines[0] and "(not an image in a known format)" in lines[0]
    table = (run / "evaluation.md").read_text()
    assert "on 75 test images" in table and "5 images could not be read and are left out." in table


def test_cached_features_keep_the_count(run: Path, own_photos: Path, tmp_path: Path) -> None:
    _break(own_photos, "cat", 4)
    for _ in range(2):
        rows = evaluate(
            run,
            data=own_photos,
            protocols=["knn"],
            baselines=False,
            num_workers=0,
            device_name="cpu",
            max_bad_share=0.2,
        )
        assert {row.unreadable for row in rows} == {4}
    images = choose_images(ImageReader(open_source(own_photos), max_image_px=10**6, seed=0), VIEW, max_bad_share=0.2)
    cache = FeatureCache(tmp_path / "f")
    first, again = (
        cache.get("k", images, lambda: extract_features(embed_pixels(torch.nn.Identity()), images, device=CPU))
        for _ in range(2)
    )
    assert again.bad == first.bad and len(first.bad) == 4


def test_the_evaluation_stops_at_the_batch_that_has_too_many(own_photos: Path) -> None:
    for name in ("brick", "cat", "coffee"):
        _break(own_photos, name, 16)
    images = choose_images(ImageReader(open_source(own_photos), max_image_px=10**6, seed=0), VIEW, max_bad_share=0.05)
    with pytest.raises(ValueError, match="8 of 80 labelled images can't be read"):
        extract_features(embed_pixels(torch.nn.Identity()), images, device=CPU, batch_size=8)


def test_the_knn_command_prints_what_it_used(
    run: Path, own_photos: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _break(own_photos, "coffee", 3)
    command = ["knn", str(run), "--data", str(photos), "--test", str(own_photos), "--workers", "0", "--device", "cpu"]
    assert main(command) == 1
    assert "3 of 80 test images can't be read (3 of 16 of class coffee)" in capsys.readouterr().err
    assert main([*command, "--max-bad-share", "0.05"]) == 0
    assert "of 77 test images; 80 training images vote" in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_no_share_of_garbage_passes_unnoticed(run: Path, own_photos: Path, share: float) -> None:
    _break(own_photos, "rocket", round(16 * share) * 2)
    _break(own_photos, "brick", round(16 * share))
    with pytest.raises(ValueError, match=r"of class rocket"):
        compare_with_baselines(run, bank=own_photos, baselines=False, num_workers=0, device_name="cpu")


@pytest.mark.parametrize("command", ["knn", "evaluate", "linear", "finetune", "export", "resume", "detect"])
def test_a_run_that_does_not_exist_is_one_clear_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = {"export": ["--to", "timm", str(tmp_path / "x")], "resume": [], "detect": ["--out", str(tmp_path / "o")]}
    arguments = [command, str(tmp_path / "nope"), *rest.get(command, [])]
    assert main([*arguments, *([] if command in ("export", "resume") else ["--data", str(tmp_path)])]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"run={tmp_path / 'nope'}: no such" in error


def test_rows_of_other_data_are_not_averaged_as_seeds(run: Path, own_photos: Path, photos: Path) -> None:
    options = {"protocols": ["knn"], "baselines": False, "num_workers": 0, "device_name": "cpu"}
    evaluate(run, data=own_photos, test=photos, seeds=(0, 1), **options)  # type: ignore[arg-type]
    table = (run / "evaluation.md").read_text()
    (own_photos / "cat" / "000.jpg").unlink()
    evaluate(run, data=own_photos, test=photos, **options)  # type: ignore[arg-type]
    rows = json.loads((run / "evaluation.json").read_text())
    assert [row["seed"] for row in rows] == [0, 0, 1, 1, 0, 0]
    assert len({row["data_id"] for row in rows}) == 2 and len({row["test_id"] for row in rows}) == 1
    now = (run / "evaluation.md").read_text()
    assert now.startswith(table), "the numbers of the images before stay as they were"
    assert now.count("Accuracy (%) on 80 test images.") == 2


def test_moved_data_replaces_its_own_rows(run: Path, own_photos: Path, tmp_path: Path) -> None:
    options = {"protocols": ["knn"], "baselines": False, "num_workers": 0, "device_name": "cpu"}
    evaluate(run, data=own_photos, **options)  # type: ignore[arg-type]
    evaluate(run, data=own_photos.rename(tmp_path / "moved"), **options)  # type: ignore[arg-type]
    rows = json.loads((run / "evaluation.json").read_text())
    assert [row["data"] for row in rows] == [str(tmp_path / "moved")] * 2
