"""Where an evaluation computes, and where its results go."""

from pathlib import Path

import pytest

from mocokit.cli import main


@pytest.mark.parametrize("command", ["knn", "evaluate", "linear", "finetune"])
def test_an_evaluation_answers_a_wrong_device_with_one_line(
    command: str, run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(run), "--data", str(photos), "--device", "cuda:-1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mocokit: run.device='cuda:-1': not a device") and error.count("\n") == 1
