import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mocokit.cli import main
from mocokit.config.schema import Config
from mocokit.data.loading import loader
from mocokit.data.loading.allocator import give_back_freed_memory
from mocokit.engine.train import train_step
from mocokit.plan import bench as benchmark
from mocokit.plan.bench import BenchResult, advise, bench
from mocokit.run.build import build_batches

RESULT = BenchResult(
    device="cuda:0",
    cores=8,
    workers=8,
    precision="bf16",
    global_batch_size=256,
    median_megapixels=0.2,
    pixels_ms={"read": 0.1, "decode": 0.6, "crop and resize": 0.2, "color and blur": 0.4},
    step_ms={"momentum update and keys": 30.0, "queries and loss": 30.0, "backward": 60.0, "optimizer and queue": 8.0},
    loss_ms=4.0,
    step_images_per_s=2000.0,
    loader_images_per_s=1000.0,
    images_per_s=990.0,
    data_wait_share=0.5,
)


def test_every_part_is_measured(tiny: Callable[..., Config], photos: Path) -> None:
    config = tiny(**{"data.source": str(photos), "method.micro_groups": 2})
    result = bench(config, seconds=0.2)
    assert set(result.pixels_ms) == set(RESULT.pixels_ms)
    assert set(result.step_ms) == set(RESULT.step_ms)
    assert result.pixels_ms["decode"] > 0
    assert min(result.step_ms.values()) > 0
    assert result.loss_ms > 0
    assert min(result.loader_images_per_s, result.step_images_per_s, result.images_per_s) > 0
    assert 0 <= result.data_wait_share < 1
    assert result.median_megapixels == pytest.approx(48 * 48 / 1e6)


def test_no_worker_is_forked_beside_memory_that_steps_have_freed(
    tiny: Callable[..., Config], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = list[str]()

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object, **settings: object) -> object:
            events.append(function.__name__)
            return function(*args, **settings)

        return call

    for module, function in (
        (benchmark, build_batches),
        (benchmark, train_step),
        (loader, give_back_freed_memory),
    ):
        monkeypatch.setattr(module, function.__name__, noting(function))
    bench(tiny(**{"data.source": str(photos), "data.workers": 1}), seconds=0.05)
    starts = [at for at, event in enumerate(events) if event == "build_batches" and "train_step" in events[:at]]
    assert len(starts) == 2, "the loader alone, the run"
    assert all(events[at + 1] == "give_back_freed_memory" for at in starts)


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"loader_images_per_s": 1000.0}, "pixels"),
        ({"loader_images_per_s": 4000.0}, "step"),
        ({"loader_images_per_s": 2000.0, "device": "cpu"}, "both"),
        ({"loader_images_per_s": 100_000.0, "device": "cpu"}, "step"),
    ],
)
def test_the_slower_part_bounds_the_run(changes: dict[str, object], bound: str) -> None:
    assert replace(RESULT, **changes).bound == bound  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "changes", "words"),
    [
        ({"data.pipeline": "reference"}, {}, "--data.pipeline fast"),
        (
            {},
            {"median_megapixels": 12.0, "pixels_ms": {**RESULT.pixels_ms, "decode": 20.0}},
            "pack photos OUT --short-side 448",
        ),
        ({}, {"pixels_ms": {**RESULT.pixels_ms, "read": 5.0}}, "reading is 81%"),
        ({}, {"workers": 4}, "--workers 8: 4 of 8 cores make views"),
        ({}, {"workers": 0, "device": "cpu"}, "--workers 8: 0 of 8 cores make views"),
        ({"augment.on": "cpu"}, {}, "--augment-on device"),
        ({"run.compile": "off"}, {"loader_images_per_s": 9000.0}, "--run.compile on"),
        ({}, {"loader_images_per_s": 9000.0, "device": "cpu"}, "nothing here"),
    ],
)
def test_advice_names_what_to_change(
    settings: dict[str, object], changes: dict[str, object], words: str, tiny: Callable[..., Config]
) -> None:
    config = tiny(**{"data.source": "photos", "data.image_size": 224, **settings})
    assert any(words in line for line in advise(config, replace(RESULT, **changes)))  # type: ignore[arg-type]


def test_the_command_prints_a_table_and_writes_all_numbers(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--data",
        str(photos),
        "--arch",
        "resnet10_w32",
        "--model.stem",
        "imagenet",
        "--image-size",
        "32",
        "--global-batch-size",
        "16",
        "--bn-groups",
        "4",
        "--method.queue-size",
        "64",
        "--workers",
        "1",
        "--seconds",
        "0.2",
        "--json",
        str(tmp_path / "bench.json"),
    ]
    assert main(["bench", "moco-v2-small", *flags]) == 0
    printed = capsys.readouterr().out
    for words in (
        "views of an image (0.0023 megapixels), one core",
        "decode",
        "loader alone, 1 workers",
        "to change",
    ):
        assert words in printed
    numbers = json.loads((tmp_path / "bench.json").read_text())
    assert numbers["bound"] in {"pixels", "step", "both"}
    assert numbers["step_images_per_s"] > 0
