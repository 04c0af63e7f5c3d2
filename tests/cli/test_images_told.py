"""Every command that reads images starts with a line on them, on standard error."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mocokit.cli import main

FinishedRun = Callable[[str], Path]


@pytest.fixture
def table(own_photos: Path) -> Path:
    """A table whose header does not say which column is the label; a file without a reader lies beside the images."""
    names = sorted(path.relative_to(own_photos).as_posix() for path in own_photos.rglob("*.jpg"))
    rows = [f"{number},{name},{name.split('/')[0]},{number % 2}" for number, name in enumerate(names)]
    (own_photos / "table.csv").write_text("\n".join(["id,photo,thing,parity", *rows]))
    (own_photos / "cat" / "IMG.heic").write_bytes(b"x")
    return own_photos / "table.csv"


BY_THING = "data: 80 images in 5 classes (brick 16, cat 16, coffee 16, grass 16, rocket 16) (labels: column thing)\n"
SMALL = ("--devices", "1xH100", "--arch", "resnet10_w16", "--image-size", "32")
OF_FOLDER = "80 images in 5 classes (brick 16, cat 16, coffee 16, grass 16, rocket 16); left out: 1 .heic file ("


def test_pack_plan_and_export_tell_the_images(
    table: Path, tmp_path: Path, finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", str(table), str(tmp_path / "p"), "--label-column", "thing", "--workers", "0"]) == 0
    assert capsys.readouterr().err == BY_THING
    assert main(["pack", str(table), str(tmp_path / "q"), "--workers", "0"]) == 0
    assert "80 images without labels (no column is headed label, class, " in capsys.readouterr().err
    assert main(["plan", "moco-v2-small", "--data", str(table.parent), *SMALL]) == 0
    assert f"data: {OF_FOLDER}" in capsys.readouterr().err
    run = finished_run("resnet18")
    out = str(tmp_path / "x.safetensors")
    assert main(["export", str(run), "--to", "safetensors", out, "--data", str(table.parent)]) == 0
    assert OF_FOLDER in capsys.readouterr().err


def test_knn_and_evaluate_take_the_column_of_labels_and_record_it(
    table: Path, finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = tmp_path / "net.safetensors"
    backbone.write_bytes((finished_run("resnet18") / "backbone.safetensors").read_bytes())
    with_column = ["--data", str(table), "--label-column", "3", "--workers", "0", "--device", "cpu"]
    assert main(["knn", str(backbone), *with_column]) == 0
    assert capsys.readouterr().err == BY_THING
    assert main(["evaluate", str(backbone), "--protocols", "knn", "--no-baselines", *with_column]) == 0
    assert BY_THING in capsys.readouterr().err
    rows = json.loads((tmp_path / "net_evaluation" / "evaluation.json").read_text())
    rows = rows["rows"] if isinstance(rows, dict) else rows
    assert {row["data"] for row in rows} == {f"{table}#label=3"}
    assert main(["knn", str(backbone), "--data", str(table), "--workers", "0"]) == 1
    assert "no labels (no column is headed label" in capsys.readouterr().err


def test_knn_on_cifar_as_distributed_tests_on_its_test_batch(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("data_batch_1", "test_batch"):
        pixels = random.integers(0, 256, (12, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2] * 4}, protocol=2))
    assert main(["knn", str(finished_run("resnet18")), "--data", str(folder), "--device", "cpu"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "data: 12 images in 3 classes (000 4, 001 4, 002 4) (its test_batch is left out here, and evaluations test on "
        "it; give the file itself to use its images)",
        f"test: 12 images in 3 classes (000 4, 001 4, 002 4); from {folder}/test_batch",
    ]
