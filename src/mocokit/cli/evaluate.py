"""`mocokit evaluate`, `linear` and `finetune`: evaluation with labels."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from mocokit.cli.arguments import RUN_NOTE, parse, take_name, tell, with_label_column

if TYPE_CHECKING:
    from mocokit.evaluate.results import Row


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags that the three commands share."""

    data: str
    """Labelled images to train on."""
    test: str = ""
    """Labelled images to test on; empty: the test part of `data` if that is a split (train/, val/), else a held-out
    tenth."""
    label_column: str = ""
    """Column of the labels of a .csv or .tsv list, by its header or number; CIFAR-100: coarse."""
    path_column: str = ""
    """Column of its paths."""
    seeds: int = 1
    """Number of seeds; each draws its own subsets, crops and initial weights. The table has means and deviations."""
    epochs_scale: float = 1.0
    """Length of each training, as a multiple of its protocol's; the ids tell the epochs."""
    workers: int = -1
    """Loader processes; 0: none, threads load each batch between the steps; -1: none if the CPU trains, else one per
    core."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Number format of the backbone."""
    max_bad_share: float = 0.01
    """Largest share of the training or of the test images that may be unreadable; such images are left out."""
    out: str = ""
    """Folder for the results and the cached features; empty: the run's own."""


def evaluate_command(arguments: list[str]) -> int:
    """Evaluate a run by several protocols."""
    import tyro

    run, rest = take_name(arguments, "RUN", "evaluate RUN --data D [--test T] [--all] [--protocols P ...]")

    def evaluate(
        flags: Annotated[Flags, tyro.conf.arg(name="")],
        *,
        all: bool = False,  # noqa: A002, the flag's name
        protocols: tuple[str, ...] = (),
        baselines: bool = True,
    ) -> int:
        """Run kNN, fast linear classification and fine-tuning on 1 % and 10 % of the labels, and print one table.

        Under torchrun, the ranks share the work; so do those of `linear` and `finetune`.

        Args:
            flags: Images, length and machine.
            all: Also run the official linear protocol and fine-tuning on all labels, which take longest.
            protocols: Run these instead: knn, linear/fast, linear/NAME, finetune/NAME@P%, finetune/NAME@IDS.txt, or the
                name of an installed one; each NAME is listed by `mocokit linear --help` or `mocokit finetune --help`.
            baselines: Also evaluate random weights and, by kNN and fast linear classification, raw pixels.

        """
        from mocokit.evaluate.evaluation import ALL, STANDARD

        return evaluate_and_print(run, protocols or (ALL if all else STANDARD), flags, baselines=baselines)

    example = "mocokit evaluate runs/a --data photos/train --test photos/val --seeds 3"
    return parse(evaluate, rest, prog=f"mocokit evaluate {run}", example=example, note=RUN_NOTE)


def linear_command(arguments: list[str]) -> int:
    """Evaluate a run by a linear classifier."""
    import tyro

    run, rest = take_name(arguments, "RUN", "linear RUN --data D [--test T] [--protocol moco]")

    def linear(
        flags: Annotated[Flags, tyro.conf.arg(name="")],
        *,
        protocol: Literal["moco", "moco-v3-r50", "moco-v3-vit", "simclr", "lightly", "fast"] = "moco",
        baselines: bool = False,
    ) -> int:
        """Train a linear classifier on the frozen backbone.

        Args:
            flags: Images, length and machine.
            protocol: A published protocol, or `fast`: many classifiers at once on cached features.
            baselines: Also evaluate random weights.

        """
        return evaluate_and_print(run, [f"linear/{protocol}"], flags, baselines=baselines)

    example = "mocokit linear runs/a --data photos --protocol fast"
    return parse(linear, rest, prog=f"mocokit linear {run}", example=example, note=RUN_NOTE)


def finetune_command(arguments: list[str]) -> int:
    """Evaluate a run by fine-tuning it on few labels."""
    import tyro

    run, rest = take_name(arguments, "RUN", "finetune RUN --data D [--test T] [--fraction 0.01] [--protocol lr-grid]")

    def finetune(
        flags: Annotated[Flags, tyro.conf.arg(name="")],
        *,
        fraction: float = 0.01,
        ids: str = "",
        protocol: Literal["lr-grid", "lr-grid-6000", "simclr"] = "lr-grid",
        baselines: bool = False,
    ) -> int:
        """Fine-tune the backbone with a new classifier on a part of the labels.

        Args:
            flags: Images, length and machine.
            fraction: Share of the training images whose labels are used, equally many per class; 1: all.
            ids: File that lists the images to use instead, such as SimCLR's 1percent.txt.
            protocol: lr-grid: SGD, 9 pairs of rates, chosen on a fifth of the labelled images; lr-grid-6000: the same,
                chosen on at most 6,000 of them; simclr: LARS.
            baselines: Also fine-tune random weights, which is training from scratch.

        """
        part = ids or f"{100 * fraction:g}%"
        return evaluate_and_print(run, [f"finetune/{protocol}@{part}"], flags, baselines=baselines)

    example = "mocokit finetune runs/a --data photos --fraction 0.1"
    return parse(finetune, rest, prog=f"mocokit finetune {run}", example=example, note=RUN_NOTE)


def evaluate_and_print(run: str, protocols: Sequence[str], flags: Flags, *, baselines: bool) -> int:
    """Run the protocols and print the table, on the main rank; return 1 if every protocol was skipped."""
    from mocokit import distributed
    from mocokit.evaluate.evaluation import evaluate, results_folder
    from mocokit.evaluate.results import text_table

    data, test = with_label_column(flags.data, flags.test, flags.label_column, flags.path_column)
    with _live_line() as (say, on_rows):
        rows = evaluate(
            run,
            data=data,
            test=test,
            protocols=protocols,
            baselines=baselines,
            seeds=range(flags.seeds),
            epochs_scale=flags.epochs_scale,
            num_workers=flags.workers,
            device_name=flags.device,
            precision_name=flags.precision,
            max_bad_share=flags.max_bad_share,
            out=flags.out or None,
            say=say,
            on_rows=on_rows,
            on_data=tell,
        )
    if not rows:
        return 1  # the log tells why each protocol was skipped
    if not distributed.started_as_main():
        return 0
    tested = flags.test or rows[0].test or f"a tenth of {flags.data}, held out"
    print(f"\naccuracy (%) on {rows[0].test_images:,} test images ({tested})\n\n{text_table(rows)}")
    _print_choices(rows)
    folder = results_folder(run, flags.out or None)
    print(f"\nnumbers: {folder / 'evaluation.json'}; table: {folder / 'evaluation.md'}")
    return 0


def _print_choices(rows: "Sequence[Row]") -> None:
    """Print the settings that held-out training images chose, for each protocol and kind of features."""
    chosen: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.chosen:
            chosen.setdefault((row.protocol, row.features), []).append(row.chosen)
    if chosen:
        print("\nchosen on held-out training images")
        width = max(len(protocol) for protocol, _ in chosen)
    for (protocol, features), choices in chosen.items():
        print(f"  {protocol:{width}}   {features:11}   {'; '.join(dict.fromkeys(choices))}")


@contextlib.contextmanager
def _live_line() -> "Iterator[tuple[Callable[[str], None], Callable[[list[Row]], None]]]":
    """Context manager that shows progress (on a terminal) and results on standard error; yields `say` and `on_rows`.

    Ranks other than the main one show nothing.
    """
    from mocokit import distributed

    if not distributed.started_as_main():
        yield (lambda _text: None), (lambda _rows: None)
        return

    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False)
    with console.status("reading the images") as status:

        def on_rows(rows: "list[Row]") -> None:
            for row in rows:
                console.print(f"{row.protocol:42} {row.features:12} {100 * row.accuracy:6.1f}", markup=False)

        yield (lambda text: status.update(escape(text))), on_rows
