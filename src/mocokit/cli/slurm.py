"""The command `mocokit slurm`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mocokit.cli.arguments import OwnMethod, parse, take_option, take_preset


def slurm_command(arguments: list[str]) -> int:
    """Write a Slurm batch script for a run."""
    import tyro

    from mocokit.config.schema import Config

    flags = "--data D --out RUN --nodes N --gpus-per-node G [any flag of pretrain]"
    method_from, _ = take_option(arguments, "--method-from")
    name, preset, rest = take_preset(arguments, "slurm", flags)

    @dataclass(frozen=True, kw_only=True)
    class Slurm(OwnMethod):
        config: Annotated[Config, tyro.conf.arg(name="")]
        out: str
        """Run folder to make, on a file system that all nodes share."""
        nodes: int = 1
        """Number of machines."""
        gpus_per_node: int = 8
        """GPUs on each machine; one rank per GPU."""
        cpus_per_gpu: int = 8
        """Cores to ask for with each GPU; --sbatch cpus-per-task=N, cpus-per-gpu=N or exclusive ask instead."""
        time: str = "24:00:00"
        """Time limit of one job (H:MM:SS or D-HH:MM:SS); the run continues in the next job."""
        sbatch: tuple[str, ...] = ()
        """Further directives of sbatch, without dashes, for example partition=gpu account=vision."""
        write: str = ""
        """File to write the script to; empty: print it."""

    asked = parse(
        Slurm,
        rest,
        default=Slurm(config=preset, out=tyro.MISSING),
        prog=f"mocokit slurm {name}",
        description="Write an sbatch script that trains, requeues itself before its time limit, and resumes.",
        example="mocokit slurm moco-v2 --data /data/photos --out /runs/a --nodes 2 --write run.sbatch",
    )

    from mocokit.plan.slurm import slurm_script

    text = slurm_script(
        name,
        asked.config,
        out=asked.out,
        nodes=asked.nodes,
        gpus_per_node=asked.gpus_per_node,
        cpus_per_gpu=asked.cpus_per_gpu,
        time=asked.time,
        sbatch=[f"--{directive.lstrip('-')}" for directive in asked.sbatch],
        method_from=method_from or "",
    )
    if not asked.write:
        print(text, end="")
        return 0
    Path(asked.write).write_text(text, encoding="utf-8")
    print(f"next: sbatch {asked.write}")
    return 0
