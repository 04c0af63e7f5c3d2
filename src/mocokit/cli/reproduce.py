"""`reproduce`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mocokit.cli.arguments import take_name

if TYPE_CHECKING:
    from mocokit.plan.measure_step import StepCost
    from mocokit.reproduction.cost_point import CostPoint
    from mocokit.reproduction.rendering import Filled
    from mocokit.reproduction.runner import Outcome, Plan
    from mocokit.reproduction.table import Cell, Table

USAGE = "reproduce {temperature,ablation,sota,mechanisms,cost} [--scale small|imagenet] [--out DIR] [--trials 3]"


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Reproduce a table of the papers: run it in small, or print what fills it on ImageNet and what it has so far."""

    scale: Literal["small", "imagenet"] = "small"
    """small: run every cell here; imagenet: print each cell's commands and the table of what is finished in `out`."""
    out: str = "runs/reproduce"
    """Folder for the runs; the same command continues after a kill and repeats no finished cell."""
    data: str = ""
    """small: labelled images; empty: the embedded sample. imagenet: the folder that holds train and val."""
    test: str = ""
    """small: labelled images that the accuracies are of; the embedded sample's when `data` is empty."""
    voc: str = "voc"
    """imagenet: the folder that holds VOC2007 and VOC2012, for tables with detection."""
    trials: int | None = None
    """Seeds of a cell; None: 3 in small, 1 on ImageNet, where detection has the paper's 5 trials."""
    epochs: int | None = None
    """small: what the paper's 200 epochs become; None: the table's own."""
    only: tuple[str, ...] = ()
    """These cells alone."""
    dry_run: bool = False
    """small: tell the cells, what is finished and the predicted minutes, and run nothing."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class ReproduceCost:
    """Measure memory and time of a step by mechanism, batch and number of negatives, on this machine."""

    scale: Literal["small", "imagenet"] = "small"
    """small: the demo's network at 48 px; imagenet: the paper's table, and the command for ResNet-50 on a GPU."""
    out: str = "runs/reproduce"
    """Folder for the points; the same command measures what is missing."""
    arch: str = "resnet10_w32"
    """Backbone."""
    image_size: int = 48
    """Side of a view (pixels)."""
    most: int = 4096
    """Largest batch of end-to-end."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    dry_run: bool = False
    """Tell the points and measure nothing."""


def reproduce_command(arguments: list[str]) -> int:
    """Reproduce a table of the papers."""
    import tyro

    name, rest = take_name(arguments, "TABLE", USAGE)
    if name == "cost":
        return _cost(tyro.cli(ReproduceCost, args=rest, prog="mocokit reproduce cost"))
    from mocokit.reproduction.tables import get_table

    table = get_table(name)
    asked = tyro.cli(Reproduce, args=rest, prog=f"mocokit reproduce {name}")
    if asked.trials is not None and asked.trials < 1:
        raise ValueError(f"trials={asked.trials}: must be at least 1")
    cells = table.chosen(asked.only)
    return _small(table, cells, asked) if asked.scale == "small" else _imagenet(table, cells, asked)


def _plan(table: "Table", cells: "tuple[Cell, ...]", asked: Reproduce) -> "Plan":
    from mocokit.reproduction.runner import Plan
    from mocokit.run.demo import sample_path

    if asked.data and not asked.test:
        raise ValueError(f"data={asked.data}: say with --test which labelled images the accuracies are to be of")
    return Plan(
        table=table,
        cells=cells,
        out=Path(asked.out).expanduser(),
        data=asked.data or str(sample_path("train")),
        test=asked.test or str(sample_path("test")),
        seeds=asked.trials or 3,
        epochs=asked.epochs,
        device=asked.device,
    )


def _small(table: "Table", cells: "tuple[Cell, ...]", asked: Reproduce) -> int:
    from mocokit.reproduction.runner import predict_minutes, run_table

    plan = _plan(table, cells, asked)
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
        print(
            f"{number} of {whole}: {outcome.cell}, seed {outcome.seed}: {outcome.state}{_ending(outcome)}", flush=True
        )
        failed = failed + (outcome.state == "failed")
        signal = outcome.signal
    _show(_filled(table, cells, asked, seeds=plan.seeds), plan.out / table.name)
    if signal is not None:
        print("stopped; the same command goes on from here")
        return 128 + signal
    return 1 if failed else 0


def _ending(outcome: "Outcome") -> str:
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
    """Hours and memory of pre-training, where a paper tells them."""
    from mocokit.reproduction.cost_table import published_cost

    known = published_cost(cell.config)
    return f": {known}" if known else ""


def _filled(table: "Table", cells: "tuple[Cell, ...]", asked: Reproduce, *, seeds: int) -> "Filled":
    from mocokit.reproduction.rendering import Filled
    from mocokit.reproduction.results import cell_folder, find_values

    out = Path(asked.out).expanduser()
    folders = {cell.name: [cell_folder(out, table.name, cell.name, seed) for seed in range(seeds)] for cell in cells}
    if asked.scale == "imagenet":
        return Filled(table=table, cells=cells, metrics=table.metrics, values=find_values(folders), setup="ImageNet")
    setup = f"{Path(asked.data).name or 'embedded sample'}, {asked.epochs or table.small_epochs} epochs for 200"
    return Filled(
        table=table, cells=cells, metrics=("linear", "kNN"), values=find_values(folders), setup=setup, small=True
    )


def _show(filled: "Filled", folder: Path) -> None:
    from mocokit.reproduction.figure import plot_table
    from mocokit.reproduction.rendering import save_table, terminal_text

    save_table(filled, folder)
    plot_table(filled, folder / "table.png")
    print(f"\n{terminal_text(filled)}\n\ntable: {folder / 'table.md'}; numbers: table.json; plot: table.png")


def _cost(asked: ReproduceCost) -> int:
    from mocokit.report.text_tables import text_columns
    from mocokit.reproduction.cost import findings, measure_all, plan_points, published_cells, save_cost, table_cells
    from mocokit.reproduction.cost_figure import plot_cost

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
