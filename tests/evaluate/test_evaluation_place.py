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


def test_results_and_features_go_where_the_flag_says(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "mine"
    asked = ["evaluate", str(run), "--data", str(photos), "--protocols", "knn", "--no-baselines"]
    assert main([*asked, "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"evaluation.json", "evaluation.md", "features"}
    assert [path.name for path in run.iterdir()] == ["backbone.safetensors"]


def test_a_folder_that_takes_no_results_is_refused_before_anything_is_computed(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "backbone.safetensors"
    (run / "backbone_evaluation").write_text("a file in the place of the results")
    asked = ["evaluate", str(file), "--data", str(photos), "--protocols", "knn", "--no-baselines"]
    for more in ([], ["--out", "/proc/results"], ["--out", str(file / "inside")]):
        assert main([*asked, *more]) == 1
        error = capsys.readouterr().err
        assert "the results can't be written there" in error and "name another folder with --out" in error
        assert error.count("\n") == 1
    assert main([*asked, "--out", str(tmp_path / "results")]) == 0


def test_knn_writes_nothing_into_the_run(run: Path, photos: Path) -> None:
    assert main(["knn", str(run), "--data", str(photos)]) == 0
    assert [path.name for path in run.iterdir()] == ["backbone.safetensors"]
