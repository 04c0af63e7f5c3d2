"""Running a table at small scale: every cell and seed a run folder, never repeated once it has its numbers."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mocokit.config.schema import Config, OptimConfig
from mocokit.config.toml import from_toml, replace_settings, to_toml
from mocokit.data.loading.loader import steps_per_epoch
from mocokit.data.loading.prefetch import on_device
from mocokit.data.sources.open_source import open_source
from mocokit.engine.machine import describe_machine
from mocokit.engine.precision import pick_device
from mocokit.engine.run_folder import RunFolder
from mocokit.evaluate.evaluation import evaluate
from mocokit.plan.bench import trainer
from mocokit.reproduction.results import Result, cell_folder, load_result, metrics_of
from mocokit.reproduction.scales import shrink
from mocokit.reproduction.table import Cell, Table
from mocokit.run.build import build_batches, build_run
from mocokit.run.pretrain import locate_data, pretrain, resume

PROTOCOLS = ("knn", "linear/fast")
"""How a cell is judged at small scale."""

MINUTES_PER_EVALUATION = 0.1
"""Allowance for judging one run of the embedded sample, most of it the linear classifiers."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run."""

    table: Table
    cells: tuple[Cell, ...]
    out: Path
    data: str
    """Labelled images; pre-training doesn't read the labels."""
    test: str
    """Labelled images that the accuracies are of."""
    seeds: int = 3
    epochs: int | None = None
    """What the paper's 200 epochs become; None: the table's own."""
    device: str = "auto"

    def config(self, cell: Cell, seed: int) -> Config:
        """The run of one seed of a cell."""
        places = {"data.source": self.data, "data.test": self.test, "run.seed": seed, "run.device": self.device}
        return locate_data(replace_settings(shrink(self.table, cell, epochs=self.epochs), places))

    def folder(self, cell: Cell, seed: int) -> Path:
        """Where it lies."""
        return cell_folder(self.out, self.table.name, cell.name, seed)

    def unfinished(self) -> list[tuple[Cell, int]]:
        """What is left to do, seed by seed, so that the whole table is there as early as possible."""
        pairs = ((cell, seed) for seed in range(self.seeds) for cell in self.cells)
        return [(cell, seed) for cell, seed in pairs if load_result(self.folder(cell, seed)) is None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one seed of a cell ended."""

    cell: str
    seed: int
    state: Literal["kept", "done", "failed", "stopped"]
    """kept: it was finished before; stopped: by a signal."""
    message: str = ""
    signal: int | None = None
    result: Result | None = None


def run_table(plan: Plan) -> Iterator[Outcome]:
    """Run what is not finished yet, and tell how each went; ends early only for a signal.

    A cell that fails is told as such and tried again by the next call; the others go on.
    """
    for seed in range(plan.seeds):
        for cell in plan.cells:
            outcome = _run_cell(plan, cell, seed)
            yield outcome
            if outcome.state == "stopped":
                return


def _run_cell(plan: Plan, cell: Cell, seed: int) -> Outcome:
    folder = plan.folder(cell, seed)
    start = time.perf_counter()
    try:
        config = plan.config(cell, seed)
        begun = _begun(RunFolder(folder), config)
        if kept := load_result(folder):
            return Outcome(cell=cell.name, seed=seed, state="kept", result=kept)
        run = resume(folder) if begun else pretrain(config, out=folder)
        if run.signal is not None:
            return Outcome(cell=cell.name, seed=seed, state="stopped", signal=run.signal)
        rows = evaluate(
            folder,
            data=plan.data,
            test=plan.test,
            protocols=PROTOCOLS,
            baselines=False,
            seeds=(seed,),
            device_name=plan.device,
        )
    except (ValueError, ArithmeticError, OSError, RuntimeError, MemoryError) as error:
        return Outcome(cell=cell.name, seed=seed, state="failed", message=f"{type(error).__name__}: {error}")
    metrics, protocols = metrics_of(rows)
    minutes = (time.perf_counter() - start) / 60
    result = Result(metrics=metrics, protocols=protocols, minutes=minutes, machine=describe_machine())
    result.save(folder)
    shutil.rmtree(folder / "checkpoints")  # nothing goes on from here; the backbone stays
    return Outcome(cell=cell.name, seed=seed, state="done", result=result)


def _begun(folder: RunFolder, config: Config) -> bool:
    """Whether the folder holds this very run.

    Raises:
        ValueError: It holds another one.

    """
    if not folder.config.is_file():
        with contextlib.suppress(FileNotFoundError):
            folder.checkpoints.rmdir()  # killed before its config was written
        return False
    if to_toml(from_toml(folder.read_config())) != to_toml(config):
        raise ValueError(f"out={folder.path}: holds a run of other settings; choose another --out")
    return True


def predict_minutes(plan: Plan) -> float:
    """Minutes that the unfinished cells will take, from a few real steps of each kind of run.

    Raises:
        ValueError: A setting, or the data, does not allow a run.

    """
    num_images = len(open_source(plan.data))
    step_s = dict[Config, float]()
    minutes = 0.0
    for cell, seed in plan.unfinished():
        config = plan.config(cell, seed)
        kind = _kind(config)
        if kind not in step_s:
            step_s[kind] = measure_step_s(kind)
        steps = steps_per_epoch(num_images, config.data.global_batch_size) * config.optim.epochs
        minutes += steps * step_s[kind] / 60 + MINUTES_PER_EVALUATION
    return minutes


def _kind(config: Config) -> Config:
    """The config without what has no influence on the time of a step."""
    neutral = replace_settings(config, {"method.temperature": 0.1, "run.seed": 0})
    return Config(
        data=neutral.data,
        augment=neutral.augment,
        model=neutral.model,
        method=neutral.method,
        run=neutral.run,
        optim=OptimConfig(),
    )


def measure_step_s(config: Config, *, steps: int = 4, warm_up: int = 2) -> float:
    """Mean seconds of a step, making its views included, after some that don't count."""
    device = pick_device(config.run.device, local_rank=0)
    parts = build_run(config, device)
    batches = on_device(build_batches(config, parts, start_step=0, total_steps=steps + warm_up), device)
    train = trainer(parts)
    start = 0.0
    for step, batch in enumerate(batches):
        if step == warm_up:
            start = time.perf_counter()
        train(batch, step)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / steps
