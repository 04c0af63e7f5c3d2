"""`--help` of every command lists its flags with a line on each; what is misspelt names what it is near to."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mocokit.cli import COMMANDS, HELP, main

LIGHT = ("resume", "pack", "unpack", "knn", "evaluate", "linear", "finetune", "export", "detect", "presets", "verify")
"""Commands whose help must not wait for torch."""

FLAGS = {
    "pretrain": "--data --out --epochs --method-from --method.queue-size --run.knn-max-images --augment.hue",
    "resume": "--accept-changes --method-from",
    "pack": "DATA OUT --short-side --quality --shard-mb --workers",
    "unpack": "SHARDS OUT",
    "knn": "--data --test --baselines --workers --device --seed",
    "evaluate": "--data --test --all --protocols --seeds --epochs-scale --no-baselines",
    "linear": "--data --protocol --precision --seeds",
    "finetune": "--data --fraction --ids --protocol",
    "export": "OUT --to --data",
    "import": "--arch --image-size --mean --std --preset",
    "detect": "--data --out --layout --iterations --trials --short-side",
    "reproduce": "--scale --out --trials --only --dry-run",
    "presets": "NAME",
    "verify": "TRACE --rtol --micro-groups --augment",
    "bench": "--data --seconds --json --method-from --epochs",
    "plan": "--devices --measure --num-images --method-from",
    "slurm": "--nodes --gpus-per-node --time --sbatch --write --out --method-from",
    "demo": "--out --epochs --seed",
}


def _page(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "--version"])
def test_help_lists_each_flag_with_a_line_and_an_example(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = _page(capsys, command, "--help")
    for flag in FLAGS[command].split():
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", page), flag
    example = page.partition("example:\n  ")[2].splitlines()[0]
    assert example.startswith(f"mocokit {command}")
    assert set(re.findall(r" --[\w.-]+", example)) <= set(re.findall(r" --[\w.-]+", page))
    # An entry begins at its flag; the rest of it, without the flags and the default, is its line.
    entries = re.split(r"\n[ │]*(?=--?[a-z])", page)[1:]
    assert len(entries) >= 1
    for entry in entries:
        text = re.sub(r"\(default:.*?\)|\(required\)|--?[\w.-]+|\{[^}]*\}|[A-Z]{2,}|[^\w]", " ", entry, flags=re.DOTALL)
        assert len(text.split()) >= 2, entry


@pytest.mark.parametrize("arguments", [("knn", "runs/a", "-h"), ("knn", "--data", "x", "--help"), ("help", "knn")])
def test_help_is_told_wherever_it_is_asked_for(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--baselines" in _page(capsys, *arguments)


def test_help_does_not_wait_for_torch() -> None:
    code = f"""
import sys
from mocokit.cli import main
for command in {LIGHT}:
    try:
        main([command, "--help"])
    except SystemExit as ended:
        assert ended.code == 0
    assert "torch" not in sys.modules, command
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("pretrain moco-v2 --data x --out y --epoch 3", "--epoch: unknown flag; did you mean --epochs?"),
        ("pretrain moco-v2 --data x --out y --queue_size 3", "did you mean --method.queue-size?"),
        ("pretrain moco-v2 --batch-size 3", "--batch-size: unknown flag; did you mean --global-batch-size?"),
        ("pretrain moco-v2 --data x --method-form m:SPEC", "did you mean --method-from?"),
        ("knn r --dta x", "--dta: unknown flag; did you mean --data?"),
        ("knn r --data x --baseline", "did you mean --baselines?"),
        ("knn r --data=x --wrokers=3", "--wrokers: unknown flag; did you mean --workers?"),
        ("knn r --data x --xyzzy", "--xyzzy: unknown flag; `mocokit knn r --help` lists all"),
        ("evaluate r --data x --protocol knn", "did you mean --protocols?"),
        ("linear r --data x --seed 3", "did you mean --seeds?"),
        ("finetune r --data x --fractoin 0.1", "did you mean --fraction?"),
        ("export r o --too timm", "did you mean --to?"),
        ("import c o.safetensors --arhc resnet18", "did you mean --arch?"),
        ("detect r --data x --out y --iteration 3", "did you mean --iterations?"),
        ("pack a b --shortside 3", "did you mean --short-side?"),
        ("unpack a b --worker 3", "--worker: unknown flag;"),
        ("verify --augmnt", "did you mean --augment?"),
        ("bench moco-v2 --second 3", "did you mean --seconds?"),
        ("plan moco-v2 --device-s 8xH100", "did you mean --devices?"),
        ("slurm moco-v2 --node 3", "did you mean --nodes?"),
        ("demo --epoch 3", "did you mean --epochs?"),
        ("reproduce ablation --trial 3", "did you mean --trials?"),
        ("reproduce cost --dryrun", "did you mean --dry-run?"),
    ],
)
def test_an_unknown_flag_names_the_nearest(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("--verison", 2, "--verison: unknown command; did you mean --version?"),
        ("helpp", 2, "helpp: unknown command"),
        ("help evalute", 2, "evalute: unknown command; did you mean evaluate?"),
        ("knn --data x r", 1, "RUN is missing; it comes before --data; usage: mocokit knn RUN --data D"),
        ("pretrain --data x", 1, "PRESET is missing; it comes before --data; usage: mocokit pretrain {moco-v1"),
        ("presets moco-v1 moco-v2", 1, "presets: moco-v1 moco-v2 is not understood; usage: mocokit presets [NAME]"),
        ("presets --all", 1, "presets: --all is not understood; usage: mocokit presets [NAME]"),
        ("resume r --method-form m:S", 1, "is not understood; a run is continued with its own settings; did you mean"),
        ("reproduce temprature", 1, "table='temprature': unknown; did you mean temperature?"),
    ],
)
def test_what_is_misspelt_is_told_in_one_line(
    arguments: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == code
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in {"--version", "presets"}])
def test_a_command_without_arguments_tells_its_usage(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if command in {"verify", "demo"}:
        pytest.skip("needs none")
    monkeypatch.chdir(tmp_path)
    try:
        code = main([command])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code in {1, 2}
    text = " ".join(capsys.readouterr().err.split())
    assert "usage: mocokit" in text or f"mocokit {command} --help" in text, text


def test_help_of_help_is_the_page_of_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "--help"]) == 0
    assert capsys.readouterr().out == HELP


def test_a_reader_that_is_gone_is_no_traceback() -> None:
    """Before: `mocokit --help | true` ended in one."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mocokit", "--help"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_plan_does_not_take_device_for_devices(capsys: pytest.CaptureFixture[str]) -> None:
    """Before: `plan moco-v2 --device 8xA100` computed for 8 H100."""
    assert main(["plan", "moco-v2", "--device", "8xA100"]) == 1
    assert "run.device=8xA100: `plan` computes for --devices" in capsys.readouterr().err
