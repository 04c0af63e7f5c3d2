"""The command `mocokit reproduce`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mocokit.cli.arguments import parse, take_name
from mocokit.settings import choose, require

if TYPE_CHECKING:
    from mocokit.plan.measure_step import StepCost
    from mocokit.reproduction.cost import CostPoint
    from mocokit.reproduction.rendering import FilledTable
    from mocokit.reproduction.runner import Outcome
    from mocokit.reproduction.table import Cell, Table

USAGE = "reproduce {temperature,ablation,sota,mechanisms,cost} [--scale small|imagenet] [--out DIR] [--trials 3]"


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Reproduce a table of the papers: run it at small scale, or print the commands that fill it on ImageNet."""

    scale: Literal["small", "imagenet"] = "small"
    """small: run every cell here; imagenet: print each cell's commands and the table of the results found in `out`."""
    out: str = "runs/reproduce"
    """Folder for the runs. After a kill the same command continues; it repeats no finished cell."""
    data: str = ""
    """small: labelled images to train on; empty: the embedded sample. imagenet: the folder with train and val."""
    test: str = ""
    """small: labelled test images; empty: those of the embedded sample, if `data` is empty too."""
    voc: str = "voc"
    """imagenet: the folder with VOC2007 and VOC2012, for tables with detection."""
    trials: int | None = None
    """Seeds a cell; None: 3 at small scale, 1 on ImageNet (where detection has the paper's 5 trials)."""
    epochs: int | None = None
    """small: epochs for the paper's 200; None: the table's default."""
    only: tuple[str, ...] = ()
    """Names of the cells to run; empty: all."""
    dry_run: bool = False
    """small: print how many runs are finished and the predicted minutes of the rest, and run nothing."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


@dataclass(frozen=True, kw_only=True)
class ReproduceCost:
    """Measure memory and time of a step by mechanism, batch and number of negatives, on this machine."""

    scale: Literal["small", "imagenet"] = "small"
    """small: the demo's network at 48 px; imagenet: print the paper's table and the command for ResNet-50 on a GPU."""
    out: str = "runs/reproduce"
    """Folder for the measured points. The same command measures only the missing ones."""
    arch: str = "resnet10_w32"
    """Backbone."""
    image_size: int = 48
    """Side of a view (pixels)."""
    most: int = 4096
    """Largest batch of end-to-end."""
    device: str = "cpu"
    """cpu, cuda, cuda:N or mps."""
    dry_run: bool = False
    """Print the points and measure nothing."""


def reproduce_command(arguments: list[str]) -> int:
    """Run `mocokit reproduce` with these arguments and return the exit code."""
    name, rest = take_name(arguments, "TABLE", USAGE)
    if name == "cost":
        example = "mocokit reproduce cost --dry-run"
        return _cost(parse(ReproduceCost, rest, prog="mocokit reproduce cost", example=example))
    asked = parse(
        Reproduce,
        rest,
        prog=f"mocokit reproduce {name}",
        description="Reproduce a table of the papers: run it at small scale, or print the commands that fill it on\n"
        "ImageNet. TABLE is temperature, ablation, sota, mechanisms or cost; `mocokit reproduce cost --help` has\n"
        "flags of its own.",
        example="mocokit reproduce ablation --trials 1 --epochs 4 --dry-run",
    )

    from mocokit.reproduction.tables import TABLES

    table = choose("table", name, {**TABLES, "cost": None})
    assert table is not None
    require(asked.trials is None or asked.trials >= 1, "trials", asked.trials, "must be at least 1")
    cells = table.choose_cells(asked.only)
    return _small(table, cells, asked) if asked.scale == "small" else _imagenet(table, cells, asked)


def _small(table: "Table", cells: "tuple[Cell, ...]", asked: Reproduce) -> int:
    from mocokit.reproduction.runner import TablePlan, predict_minutes, run_table
    from mocokit.run.demo import sample_path

    needs_test = bool(asked.data) and not asked.test
    require(not needs_test, "data", asked.data, "needs labelled test images; give them with --test")
    plan = TablePlan(
        table=table,
        cells=cells,
        out=Path(asked.out).expanduser(),
        data=asked.data or str(sample_path("train")),
        test=asked.test or str(sample_path("test")),
        seeds=asked.trials or 3,
        epochs=asked.epochs,
        device=asked.device,
    )
    left = len(plan.unfinished())
    whole = len(plan.cells) * plan.seeds
    print(f"{table.title} ({table.source}): {len(cells)} cells, {plan.seeds} seeds; {whole - left} of {whole} finished")
    if left:
        print(f"about {predict_minutes(plan):.0f} minutes for the other {left}, by a few measured steps", flush=True)
    if asked.dry_run:
        return 0
    failed = 0
    signal = None
    for number, outcome in enumerate(run_table(plan), start=1):
        where = f"{number} of {whole}: {outcome.cell}, seed {outcome.seed}"
        print(f"{where}: {outcome.state}{_ending(outcome)}", flush=True)
        failed += outcome.state == "failed"
        signal = outcome.signal
    _show(_filled(table, cells, asked, seeds=plan.seeds), plan.out / table.name)
    if signal is not None:
        print("stopped; the same command goes on from here")
        return 128 + signal
    return 1 if failed else 0


def _ending(outcome: "Outcome") -> str:
    """Return the accuracies or the error of a run, to append to its line."""
    if outcome.result is None:
        return f", {outcome.message}" if outcome.message else ""
    return "".join(f", {name} {value:.1f}" for name, value in outcome.result.metrics.items())


def _imagenet(table: "Table", cells: "tuple[Cell, ...]", asked: Reproduce) -> int:
    from mocokit.reproduction.imagenet import Places, commands, shell_line

    out = Path(asked.out).expanduser()
    places = Places(out=out, imagenet=asked.data or "imagenet", voc=asked.voc)
    for cell in cells:
        print(f"# {cell.name}{_known_cost(cell)}")
        for seed in range(asked.trials or 1):
            for line in commands(table, cell, places, seed=seed):
                print(shell_line(line))
        print()
    _show(_filled(table, cells, asked, seeds=asked.trials or 1), out / table.name)
    return 0


def _known_cost(cell: "Cell") -> str:
    """Return `: ` and the published hours and memory of pre-training, or ""."""
    from mocokit.reproduction.cost_table import published_cost

    known = published_cost(cell.config)
    return f": {known}" if known else ""


def _filled(table: "Table", cells: "tuple[Cell, ...]", asked: Reproduce, *, seeds: int) -> "FilledTable":
    from mocokit.reproduction.rendering import FilledTable
    from mocokit.reproduction.results import cell_folder, find_values

    out = Path(asked.out).expanduser()
    folders = {cell.name: [cell_folder(out, table.name, cell.name, seed) for seed in range(seeds)] for cell in cells}
    if asked.scale == "imagenet":
        return FilledTable(
            table=table,
            cells=cells,
            metrics=table.metrics,
            values=find_values(folders),
            setup="ImageNet",
        )
    setup = f"{Path(asked.data).name or 'embedded sample'}, {asked.epochs or table.small_epochs} epochs for 200"
    return FilledTable(
        table=table,
        cells=cells,
        metrics=("linear", "kNN"),
        values=find_values(folders),
        setup=setup,
        small=True,
    )


def _show(filled: "FilledTable", folder: Path) -> None:
    from mocokit.reproduction.figures import plot_table
    from mocokit.reproduction.rendering import save_table, terminal_text

    save_table(filled, folder)
    plot_table(filled, folder / "table.png")
    print(f"\n{terminal_text(filled)}\n\ntable: {folder / 'table.md'}; numbers: table.json; plot: table.png")


def _cost(asked: ReproduceCost) -> int:
    from mocokit.report.text_tables import text_columns
    from mocokit.reproduction.cost import measure_all, plan_points
    from mocokit.reproduction.cost_table import findings, published_cells, save_cost, table_cells
    from mocokit.reproduction.figures import plot_cost

    print(f"the paper's (8 V100, ResNet-50, 224 px)\n\n{text_columns(*published_cells())}\n")
    if asked.scale == "imagenet":
        print("mocokit reproduce cost --arch resnet50 --image-size 224 --device cuda --out", asked.out)
        return 0
    points = plan_points(arch=asked.arch, image_size=asked.image_size, device=asked.device, most=asked.most)
    if asked.dry_run:
        print("\n".join(f"{point.way}: batch {point.batch}, {point.negatives} negatives" for point in points))
        return 0
    out = Path(asked.out).expanduser() / "cost"
    measured = measure_all(points, out, on_point=_print_point)
    if measured:
        save_cost(measured, out)
        plot_cost(measured, out / "table.png")
        print("\n".join(["", text_columns(*table_cells(measured)), "", *findings(measured)]))
        print(f"\ntable: {out / 'table.md'}; numbers: table.json; plot: table.png")
    return 0 if len(measured) == len(points) else 1


def _print_point(point: "CostPoint", cost: "StepCost | None", problem: str) -> None:
    where = f"{point.way}, batch {point.batch}, {point.negatives} negatives"
    told = problem if cost is None else f"{cost.peak_megabytes:,.0f} MB, {cost.step_s:.2f} s a step"
    print(f"{where}: {told}", flush=True)
