"""A real run on a disk so slow that its first save takes until the training thread waits for it."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import mocokit
from mocokit.config.schema import Config
from mocokit.engine import checkpoint
from mocokit.engine.background import BackgroundWriter


def test_only_the_end_of_an_epoch_waits_for_a_slow_disk_and_only_its_save_exports(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "run" / "metrics.jsonl"
    waited_for = threading.Event()
    written = list[str]()
    logged = list[int]()
    wait = BackgroundWriter.wait
    flush = checkpoint.flush_to_disk

    def noticed(writer: BackgroundWriter) -> None:
        if writer.is_busy():
            waited_for.set()
        wait(writer)

    def slow(path: Path) -> None:
        if path.name.endswith(checkpoint.PARTIAL) and log.exists():  # training has begun
            assert waited_for.wait(60)
            written.append(path.name.removesuffix(checkpoint.PARTIAL))
            logged.append(log.read_text().count('"loss"'))
        flush(path)

    monkeypatch.setattr(BackgroundWriter, "wait", noticed)
    monkeypatch.setattr(checkpoint, "flush_to_disk", slow)
    config = tiny(**{"optim.epochs": 1, "run.save_minutes": 1e-6})  # 5 steps, a save due at each
    mocokit.pretrain(config, out=tmp_path / "run")
    assert logged[0] == 5
    assert written == ["step_000000001.pt", "step_000000005.pt", "backbone.safetensors"]
