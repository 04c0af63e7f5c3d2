"""The command line. Names of commands and flags are a contract with users."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mocokit.cli import COMMANDS, main
from mocokit.config.schema import Config
from tests.run_process import finish, flags_of, start

Tiny = Callable[..., Config]


def test_the_commands_are_these() -> None:
    assert set(COMMANDS) == {
        "--version",
        "pretrain",
        "resume",
        "pack",
        "unpack",
        "knn",
        "evaluate",
        "linear",
        "finetune",
        "export",
        "import",
        "detect",
        "plan",
        "reproduce",
        "slurm",
        "presets",
        "verify",
        "bench",
        "demo",
    }


def test_help_does_not_import_torch() -> None:
    code = "import sys; from mocokit.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_short_flags_are_a_contract(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "moco-v2", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    short = (
        "data test out epochs arch image-size global-batch-size lr seed device precision workers bn-groups mlp aug-plus"
    )
    for flag in [*short.split(), "cos", "temperature", "method.queue-size", "optim.lr-by", "run.save-minutes"]:
        assert f"--{flag}" in text, flag


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "usage: mocokit COMMAND"),
        (["pretrian"], 2, "pretrian: unknown command; did you mean pretrain?"),
        (["pretrain"], 1, "PRESET is missing; usage: mocokit pretrain {moco-v1,moco-v2"),
        (["pretrain", "moco-v9", "--data", "x"], 1, "preset='moco-v9': unknown; did you mean moco-v"),
        (["pretrain", "moco-v2", "--out", "x"], 1, "data: say where the images are"),
        (["pretrain", "moco-v2", "--data", "/nowhere", "--out", "x"], 1, "data=/nowhere: no such file or folder"),
        (["resume"], 1, "RUN is missing"),
        (["resume", "/nowhere"], 1, "run=/nowhere: no such folder"),
        (["resume", "/nowhere", "--lr", "3"], 1, "--lr 3 is not understood"),
        (["knn", "/nowhere", "--data", "x"], 1, "run=/nowhere: no such run folder or backbone file"),
        (["export"], 1, "RUN is missing; usage: mocokit export RUN --to torchvision|timm"),
        (
            ["export", "/nowhere", "--to", "timm", "/nowhere/x.pth"],
            1,
            "run=/nowhere: no such run folder or backbone file",
        ),
        (["import", "/nowhere", "/nowhere/x.safetensors"], 1, "checkpoint=/nowhere: no such file"),
        (["import", "/nowhere", "/nowhere/run"], 1, "checkpoint=/nowhere: no such file"),
        (["evaluate", "/nowhere", "--data", "x"], 1, "run=/nowhere: no such run folder or backbone file"),
        (["linear"], 1, "RUN is missing; usage: mocokit linear RUN --data D"),
        (
            ["finetune", "/nowhere", "--data", "x", "--fraction", "2"],
            1,
            "run=/nowhere: no such run folder or backbone file",
        ),
        (["presets", "moco"], 1, "preset='moco': unknown"),
        (["verify", "/nowhere.npz"], 1, "trace=/nowhere.npz: can't be read"),
    ],
)
def test_wrong_usage_is_one_line_that_helps(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert message in printed.out + printed.err
    assert len(printed.err.splitlines()) <= 1


def test_an_unknown_flag_names_a_similar_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "moco-v2", "--data", "x", "--out", "y", "--epoch", "3"])
    assert ended.value.code == 2
    assert "--epochs" in capsys.readouterr().err


def test_presets_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    assert "moco-v2-800ep" in capsys.readouterr().out
    assert main(["presets", "moco-v1"]) == 0
    assert "temperature = 0.07" in capsys.readouterr().out


def test_pretrain_then_knn_from_the_command_line(tiny: Tiny, photos: Path, tmp_path: Path) -> None:
    config = tiny(**{"optim.epochs": 1})
    code, output = finish(start(["pretrain", "moco-v2-small", *flags_of(config), "--out", str(tmp_path / "run")]))
    assert code == 0, output
    assert "done: 5 steps; backbone:" in output
    code, output = finish(start(["knn", str(tmp_path / "run"), "--data", str(photos), "--baselines"]))
    assert code == 0, output
    rows = [line.split() for line in output.splitlines() if line.startswith(("raw", "random", "pre-trained"))]
    assert len(rows) == 3
    assert all(0 <= float(cell) <= 100 for row in rows for cell in row[-2:])


def test_linear_and_finetune_know_every_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    from mocokit.evaluate.protocols import FINETUNE_PROTOCOLS, LINEAR_PROTOCOLS

    for command, known in (("linear", [*LINEAR_PROTOCOLS, "fast"]), ("finetune", list(FINETUNE_PROTOCOLS))):
        with pytest.raises(SystemExit):
            main([command, "run", "--help"])
        choices = capsys.readouterr().out.split("--protocol {")[1].split("}")[0]
        assert sorted(choices.split(",")) == sorted(known)


def test_evaluate_linear_and_finetune_from_the_command_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mocokit.engine.backbone_file import BackboneCard, random_backbone, save_backbone

    card = BackboneCard(
        arch="resnet10_w32",
        stem="imagenet",
        image_size=32,
        eval_crop_ratio=1.0,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        step=0,
    )
    save_backbone(tmp_path / "run" / "backbone.safetensors", random_backbone(card, seed=1), card)
    shared = [str(tmp_path / "run"), "--data", str(photos), "--workers", "0", "--device", "cpu"]
    assert (
        main(["evaluate", *shared, "--protocols", "knn", "linear/fast", "--seeds", "2", "--epochs-scale", "0.1"]) == 0
    )
    table = capsys.readouterr().out
    header = next(line for line in table.splitlines() if line.startswith("protocol"))
    assert header.split() == ["protocol", "labels", "raw", "pixels", "random", "init", "pre-trained", "time"]
    assert table.count("+-") == 9, "three protocols of three kinds of features, two seeds each"
    assert main(["linear", *shared, "--protocol", "simclr", "--epochs-scale", "0.02"]) == 0
    assert "linear/simclr@b8,e2" in capsys.readouterr().out
    assert main(["finetune", *shared, "--protocol", "simclr", "--fraction", "0.5", "--epochs-scale", "0.02"]) == 0
    assert "finetune/simclr@50%,b4,e1" in capsys.readouterr().out
    assert len((tmp_path / "run" / "evaluation.md").read_text().splitlines()) == 4 + 6


@pytest.mark.slow
def test_the_demo_beats_pixels_and_random_weights(tmp_path: Path) -> None:
    """Two epochs are enough for a lead of several points on the test part of the embedded sample."""
    from mocokit.run.demo import evaluate_demo, run_demo

    result = run_demo(tmp_path / "run", epochs=2)
    assert result.step == result.total_steps
    accuracy = {row.features: row.accuracy for row in evaluate_demo(tmp_path / "run")}
    for protocol, trained in accuracy["pre-trained"].items():
        assert trained > accuracy["raw pixels"][protocol] + 0.05
        assert trained > accuracy["random init"][protocol] + 0.02


def test_the_minimal_example_learns_something() -> None:
    example = Path(__file__).parents[2] / "examples" / "pretrain_minimal.py"
    assert len(example.read_text().splitlines()) <= 40
    done = subprocess.run([sys.executable, str(example)], check=True, capture_output=True, text=True)
    assert done.stdout.count("loss") == 10
