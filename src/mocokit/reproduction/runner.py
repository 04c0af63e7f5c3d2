"""Run a table at small scale. Each seed of a cell has a run folder; killed runs are resumed, finished ones kept."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from mocokit.config.schema import Config, OptimConfig
from mocokit.config.toml import replace_settings
from mocokit.data.loading.loader import steps_per_epoch
from mocokit.data.loading.prefetch import on_device
from mocokit.data.sources.open_source import open_source
from mocokit.engine.device import pick_device
from mocokit.engine.machine import describe_machine
from mocokit.engine.run_folder import RunFolder
from mocokit.evaluate.evaluation import evaluate
from mocokit.plan.bench import trainer
from mocokit.reproduction.results import Result, cell_folder, load_result, metrics_of
from mocokit.reproduction.small_scale import shrink
from mocokit.reproduction.table import Cell, Table
from mocokit.run.build import build_batches, build_run
from mocokit.run.existing import goes_on
from mocokit.run.places import locate_data
from mocokit.run.pretrain import pretrain

PROTOCOLS = ("knn", "linear/fast")
"""Protocols that evaluate a run at small scale."""

MINUTES_PER_EVALUATION = 0.1
"""Allowance for evaluating one run on the embedded sample, most of it for the linear classifiers."""


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """The cells to run, with their data, seeds and lengths."""

    table: Table
    cells: tuple[Cell, ...]
    out: Path
    data: str
    """Labelled images to train on. Pre-training does not read the labels."""
    test: str
    """Labelled images that the accuracies are measured on."""
    seeds: int = 3
    epochs: int | None = None
    """Epochs for the paper's 200; None: the table's `small_epochs`."""
    device: str = "auto"

    def config(self, cell: Cell, seed: int) -> Config:
        """Return the config of one seed of a cell."""
        places = {"data.source": self.data, "data.test": self.test, "run.seed": seed, "run.device": self.device}
        return locate_data(replace_settings(shrink(self.table, cell, epochs=self.epochs), places))

    def folder(self, cell: Cell, seed: int) -> Path:
        """Return the run folder of one seed of a cell."""
        return cell_folder(self.out, self.table.name, cell.name, seed)

    def unfinished(self) -> list[tuple[Cell, int]]:
        """Return the (cell, seed) pairs without a result, all cells of one seed before the next seed."""
        pairs = ((cell, seed) for seed in range(self.seeds) for cell in self.cells)
        return [(cell, seed) for cell, seed in pairs if load_result(self.folder(cell, seed)) is None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of one seed of a cell."""

    cell: str
    seed: int
    state: Literal["kept", "done", "failed", "stopped"]
    """kept: finished by an earlier call; stopped: by a signal."""
    message: str = ""
    signal: int | None = None
    result: Result | None = None


def run_table(plan: TablePlan) -> Iterator[Outcome]:
    """Run the unfinished cells and yield the outcome of each cell and seed.

    A failed cell does not stop the others; the next call tries it again. Ends early only on a signal.
    """
    # Seeds are the outer loop, so that a table with one run a cell is there as early as possible.
    for seed in range(plan.seeds):
        for cell in plan.cells:
            outcome = _run_cell(plan, cell, seed)
            yield outcome
            if outcome.state == "stopped":
                return


def _run_cell(plan: TablePlan, cell: Cell, seed: int) -> Outcome:
    """Start, resume or skip one seed of a cell, and save its result."""
    folder = plan.folder(cell, seed)
    start = time.perf_counter()
    try:
        config = plan.config(cell, seed)
        goes_on(RunFolder(folder), config, "resume")  # refuses a run of other settings, a finished one too
        if kept := load_result(folder):
            return Outcome(cell=cell.name, seed=seed, state="kept", result=kept)
        run = pretrain(config, out=folder, exist="resume")
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
        # What a run raises for its settings, data, disk or memory; the other cells may still succeed.
        return Outcome(cell=cell.name, seed=seed, state="failed", message=f"{type(error).__name__}: {error}")
    metrics, protocols = metrics_of(rows)
    minutes = (time.perf_counter() - start) / 60
    result = Result(metrics=metrics, protocols=protocols, minutes=minutes, machine=describe_machine())
    result.save(folder)
    shutil.rmtree(folder / "checkpoints")  # the run is finished; its backbone file stays
    return Outcome(cell=cell.name, seed=seed, state="done", result=result)


def predict_minutes(plan: TablePlan) -> float:
    """Return the minutes that the unfinished cells will take, predicted from a few real steps of each kind of run.

    Raises:
        ValueError: A setting or the data does not allow a run.

    """
    num_images = len(open_source(plan.data))
    step_s = dict[Config, float]()
    minutes = 0.0
    for cell, seed in plan.unfinished():
        config = plan.config(cell, seed)
        # The time of a step does not depend on seed, temperature and optimizer, so these get one value for all.
        kind = replace(replace_settings(config, {"method.temperature": 0.1, "run.seed": 0}), optim=OptimConfig())
        if kind not in step_s:
            step_s[kind] = measure_step_s(kind)
        steps = steps_per_epoch(num_images, config.data.global_batch_size) * config.optim.epochs
        minutes += steps * step_s[kind] / 60 + MINUTES_PER_EVALUATION
    return minutes


def measure_step_s(config: Config, *, steps: int = 4, warm_up: int = 2) -> float:
    """Return the mean seconds of a step, loading of its views included, after `warm_up` untimed steps."""
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
