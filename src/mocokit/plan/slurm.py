"""Write a Slurm batch script that starts torchrun on every node; before its time limit, the job requeues itself."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import to_dotted, to_flags
from mocokit.methods.groups import GroupLayout
from mocokit.run.places import locate_data
from mocokit.settings import require

_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
_DIRECTIVE = re.compile(r"--[a-z-]+(=[^\n]*)?")

ASK_FOR_CORES = ("--cpus-per-task", "--cpus-per-gpu", "--exclusive", "--threads-per-core")
"""Directives by which the user chooses the cores."""

_SCRIPT = """\
#!/bin/bash
# Submit with: sbatch THIS_FILE. Stop for good with: touch {stop}
{directives}

run={run}
if [ -e {stop} ]; then exit 0; fi
command=({pretrain} --out "$run" --exist resume)  # starts the run, or goes on with it
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

stopped=0
stop() {{ stopped=1; kill -TERM "$launcher" 2>/dev/null; }}
trap stop USR1 TERM
# srun passes SIGTERM to torchrun, and torchrun to the ranks; they finish their step and write one checkpoint.
# srun of Slurm 22.05 and later gives a task one core unless it is told the job's number.
if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi
srun {python} -m torch.distributed.run --nnodes="$SLURM_NNODES" --nproc-per-node={gpus_per_node} \\
  --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$first_node:$((20000 + SLURM_JOB_ID % 20000))" \\
  -m mocokit "${{command[@]}}" &
launcher=$!
wait "$launcher"; code=$?
while kill -0 "$launcher" 2>/dev/null; do wait "$launcher"; code=$?; done  # a signal ends `wait` early

if [ "$stopped" = 1 ] && [ "$code" -ne 0 ] && [ ! -e {stop} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def slurm_script(
    preset: str,
    config: Config,
    *,
    out: str | Path,
    nodes: int = 1,
    gpus_per_node: int = 8,
    cpus_per_gpu: int = 8,
    time: str = "24:00:00",
    stop_before_s: int = 120,
    sbatch: Sequence[str] = (),
    method_from: str = "",
) -> str:
    """Return the text of an sbatch script that trains, requeues itself before its time limit, and then resumes.

    Shortly before the time limit, or on SIGTERM, the run writes a checkpoint and stops, and the job returns to the
    queue under its own number. A run that fails by itself is not requeued.

    Args:
        preset: Name of the preset from which `config` differs.
        config: Settings of the run.
        out: Run folder to make, on a file system that all nodes share.
        nodes: Number of machines.
        gpus_per_node: GPUs, and so ranks, on each machine.
        cpus_per_gpu: Cores to ask for with each GPU; Slurm gives a task one core by default, and JPEGs need more. Not
            used if `sbatch` asks for cores itself.
        time: Time limit of one job as Slurm writes it: minutes, H:MM:SS or D-HH:MM:SS.
        stop_before_s: Seconds before the time limit at which the run is told to stop.
        sbatch: Further directives, such as "--partition=gpu".
        method_from: PACKAGE.MODULE:SPEC of a method that is not part of mocokit; empty: it is one of ours.

    Raises:
        ValueError: More ranks than BatchNorm groups, or a malformed time or directive.

    """
    require(nodes >= 1, "nodes", nodes, "must be at least 1")
    require(gpus_per_node >= 1, "gpus_per_node", gpus_per_node, "must be at least 1")
    require(cpus_per_gpu >= 1, "cpus_per_gpu", cpus_per_gpu, "must be at least 1")
    require(bool(_TIME.fullmatch(time)), "time", time, "write it as H:MM:SS or D-HH:MM:SS")
    # Now, not when the job starts: can the BatchNorm groups be shared out to so many ranks?
    layout = GroupLayout(bn_groups=config.method.bn_groups, world_size=nodes * gpus_per_node)
    layout.rows_per_group(config.data.global_batch_size)
    for directive in sbatch:
        require(bool(_DIRECTIVE.fullmatch(directive)), "sbatch", directive, "must look like --partition=gpu")
    own = f" --method-from {shlex.quote(method_from)}" if method_from else ""
    folder = Path(out).expanduser().absolute()
    directives = [*_directives(folder, nodes, gpus_per_node, time, stop_before_s), *sbatch]
    if not any(directive.startswith(ASK_FOR_CORES) for directive in sbatch):
        directives.append(f"--cpus-per-task={cpus_per_gpu * gpus_per_node}")
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {_quote(directive)}" for directive in directives),
        run=shlex.quote(str(folder)),
        stop=shlex.quote(f"{folder}.stop"),
        pretrain=shlex.join(["pretrain", preset, *changed_flags(preset, config)]) + own,
        python=shlex.quote(sys.executable),
        gpus_per_node=gpus_per_node,
    )


def _directives(folder: Path, nodes: int, gpus_per_node: int, time: str, stop_before_s: int) -> list[str]:
    return [
        f"--job-name=mocokit-{folder.name}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--gpus-per-node={gpus_per_node}",
        f"--time={time}",
        f"--signal=B:USR1@{stop_before_s}",
        "--requeue",
        "--open-mode=append",
        f"--output={folder}.slurm.log",
    ]


def _quote(directive: str) -> str:
    """Return the directive with its value in quotes if it has spaces."""
    name, equals, value = directive.partition("=")
    return f'{name}{equals}"{value}"' if " " in value else directive


def changed_flags(preset: str, config: Config) -> list[str]:
    """Return the flags of `mocokit pretrain` that turn the preset into `config`, with absolute paths of its images."""
    before = to_dotted(get_preset(preset))
    now = to_dotted(locate_data(config))
    # Another method has settings of its own, which the preset lacks.
    changed = {name: value for name, value in now.items() if name not in before or value != before[name]}
    return to_flags(changed)
