"""Run the batch script for real, with small shell scripts in place of Slurm's programs."""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mocokit.cli import main
from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.methods import SPECS
from mocokit.plan.slurm import changed_flags, slurm_script
from tests.run_process import final_state, finish, flags_of, same, start, wait_for_step

PROGRAMS = {
    # passes SIGTERM to its task, as srun does
    "srun": 'trap \'kill -TERM "$task"\' TERM\n"$@" &\ntask=$!\nwait "$task"; code=$?\n'
    'while kill -0 "$task" 2>/dev/null; do wait "$task"; code=$?; done\nexit "$code"\n',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$FAKE_QUEUE"; fi\n',
    "sbatch": 'export SLURM_JOB_ID=$((RANDOM + 1)) SLURM_JOB_NODELIST=localhost SLURM_NNODES=1\nexec bash "$1"\n',
}


def _sbatch(script: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """Start `sbatch script` with PROGRAMS on the path; SIGUSR1 to it stands for Slurm's warning to the batch shell."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "FAKE_QUEUE": str(tmp_path / "requeued")}
    return subprocess.Popen(
        ["sbatch", str(script)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.dist
def test_a_job_whose_time_is_up_is_requeued_and_ends_bit_equal(tiny: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny(**{"optim.epochs": 4, "run.save_minutes": 10.0})  # 20 steps
    whole = start(["pretrain", "moco-v2-small", *flags_of(config), "--out", str(tmp_path / "whole")], ranks=2)
    run = tmp_path / "my run"
    script = tmp_path / "job.sh"
    queue = tmp_path / "requeued"
    script.write_text(slurm_script("moco-v2-small", config, out=run, nodes=1, gpus_per_node=2))
    job = _sbatch(script, tmp_path)
    wait_for_step(run, 3)
    job.send_signal(signal.SIGUSR1)
    code, output = finish(job)
    assert code != 0
    assert re.fullmatch(r"requeue \d+\n", queue.read_text()), output
    assert 3 <= final_state(run)["step"] < 20
    code, output = finish(_sbatch(script, tmp_path))
    assert code == 0, output
    assert queue.read_text().count("requeue") == 1, "a run that is complete is not requeued"
    assert finish(whole)[0] == 0
    assert same(final_state(run)["method"], final_state(tmp_path / "whole")["method"])


@pytest.mark.slow
def test_a_run_that_fails_by_itself_is_not_requeued(tiny: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny(**{"data.source": str(tmp_path / "nothing")})
    (tmp_path / "job.sh").write_text(slurm_script("moco-v2-small", config, out=tmp_path / "run", gpus_per_node=1))
    code, output = finish(_sbatch(tmp_path / "job.sh", tmp_path))
    assert code != 0
    assert "no such file or folder" in output
    assert not (tmp_path / "requeued").exists()


def test_another_method_than_the_presets_is_in_the_flags() -> None:
    config = replace_settings(get_preset("moco-v2"), {"method.name": "simclr", "method.bn_groups": 1})
    flags = changed_flags("moco-v2", config)
    assert flags == ["--method.name", "simclr", "--method.bn-groups", "1"]


def test_a_method_of_ones_own_is_given_again_when_the_job_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--method-from", "examples.own_method:SPEC"]
    assert main(["slurm", "moco-v2", *own, "--data", "/d", "--out", "/r", "--nodes", "1", "--gpus-per-node", "1"]) == 0
    text = capsys.readouterr().out
    SPECS.pop("queueless")
    assert '--method-from examples.own_method:SPEC --out "$run" --exist resume)' in text


def test_the_command_writes_the_directives_and_only_the_flags_that_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--data",
        "/data/imagenet",
        "--out",
        "/runs/a b",
        "--nodes",
        "4",
        "--gpus-per-node",
        "2",
        "--epochs",
        "100",
    ]
    assert main(["slurm", "moco-v2", *flags, "--sbatch", "partition=gpu", "--time", "1-00:00:00"]) == 0
    text = capsys.readouterr().out
    for directive in (
        "--nodes=4",
        "--gpus-per-node=2",
        "--cpus-per-task=16",
        "--signal=B:USR1@120",
        "--requeue",
        "--partition=gpu",
        "--time=1-00:00:00",
        '--output="/runs/a b.slurm.log"',
    ):
        assert f"#SBATCH {directive}\n" in text
    assert "command=(pretrain moco-v2 --data.source /data/imagenet --optim.epochs 100 --out" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert main(["slurm", "moco-v2", *flags, "--write", str(tmp_path / "job.sh")]) == 0
    assert "next: sbatch" in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["--cpus-per-task=64", "--cpus-per-gpu=4", "--exclusive"])
def test_the_users_own_wish_for_cores_is_the_only_one(asked: str) -> None:
    text = slurm_script("moco-v2", get_preset("moco-v2"), out="/runs/x", sbatch=[asked])
    assert [line for line in text.splitlines() if "cpus-per" in line or "exclusive" in line] == [f"#SBATCH {asked}"]


def test_srun_gets_the_cores_of_the_job_if_it_has_a_number() -> None:
    """Slurm sets SLURM_CPUS_PER_TASK in the batch shell only if the job asked by that directive."""
    text = slurm_script("moco-v2", get_preset("moco-v2"), out="/runs/x")
    (line,) = [line for line in text.splitlines() if "SRUN_CPUS_PER_TASK" in line]
    for environment, wanted in (({"SLURM_CPUS_PER_TASK": "64"}, "64"), ({}, "none")):
        command = ["bash", "-c", f"{line}\nbash -c 'echo ${{SRUN_CPUS_PER_TASK:-none}}'"]
        done = subprocess.run(command, env={**environment, "PATH": os.environ["PATH"]}, capture_output=True, check=True)
        assert done.stdout.decode().strip() == wanted


def test_flags_that_differ_give_the_same_config_again() -> None:
    import tyro

    settings = {"data.source": "/x", "optim.cos": False, "optim.milestones": (3, 4), "augment.blur_p": 0.25}
    config = replace_settings(get_preset("moco-v2"), settings)
    again = tyro.cli(Config, default=get_preset("moco-v2"), args=changed_flags("moco-v2", config))
    assert again == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 3, "gpus_per_node": 4}, "fewer groups than the 12 ranks"),
        ({"time": "soon"}, "time=soon"),
        ({"sbatch": ["--x\nrm -rf /"]}, "must look like --partition=gpu"),
        ({"nodes": 0}, "nodes=0: must be at least 1"),
    ],
)
def test_what_slurm_could_not_run_is_an_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slurm_script("moco-v2", get_preset("moco-v2"), out="/runs/x", **options)  # type: ignore[arg-type]
