"""`evaluate`, `linear` and `finetune`."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from mocokit.cli.arguments import take_name

if TYPE_CHECKING:
    from mocokit.evaluate.results import Row


def evaluate_command(arguments: list[str]) -> int:
    """Judge a run by several protocols."""
    import tyro

    run, rest = take_name(arguments, "RUN", "evaluate RUN --data D [--test T] [--all] [--protocols P ...]")

    def evaluate(
        *,
        data: str,
        test: str = "",
        all: bool = False,  # noqa: A002, the flag's name
        protocols: tuple[str, ...] = (),
        baselines: bool = True,
        seeds: int = 1,
        epochs_scale: float = 1.0,
        workers: int = 2,
        device: str = "auto",
        precision: Literal["fp32", "bf16", "auto"] = "fp32",
    ) -> int:
        """kNN, fast linear classification and fine-tuning on 1 % and 10 % of the labels, in one table.

        Args:
            data: Labelled images to train on.
            test: Labelled images to test on; empty: a tenth of `data`, held out.
            all: Also the official linear protocol and fine-tuning on all labels, which take longest.
            protocols: These instead: knn, linear/fast, linear/NAME, finetune/NAME@P%, finetune/NAME@IDS.txt; names as
                in `mocokit linear --help` and `mocokit finetune --help`.
            baselines: Judge random weights and, by kNN and fast linear classification, raw pixels too.
            seeds: Number of seeds; the table then has means and sample deviations.
            epochs_scale: Length of every training over that of its protocol.
            workers: Loader processes.
            device: auto, cpu, cuda or cuda:N.
            precision: Number format of the backbone.

        """
        from mocokit.evaluate.evaluation import ALL, STANDARD

        return _judge(
            run, protocols or (ALL if all else STANDARD), data=data, test=test, baselines=baselines, seeds=seeds,
            epochs_scale=epochs_scale, workers=workers, device=device, precision=precision,
        )  # fmt: skip

    return int(tyro.cli(evaluate, args=rest, prog=f"mocokit evaluate {run}"))


def linear_command(arguments: list[str]) -> int:
    """Judge a run by a linear classifier."""
    import tyro

    run, rest = take_name(arguments, "RUN", "linear RUN --data D [--test T] [--protocol moco]")

    def linear(
        *,
        data: str,
        test: str = "",
        protocol: Literal["moco", "moco-v3-r50", "moco-v3-vit", "simclr", "lightly", "fast"] = "moco",
        baselines: bool = False,
        seeds: int = 1,
        epochs_scale: float = 1.0,
        workers: int = 2,
        device: str = "auto",
        precision: Literal["fp32", "bf16", "auto"] = "fp32",
    ) -> int:
        """Linear classification on the frozen backbone.

        Args:
            data: Labelled images to train on.
            test: Labelled images to test on; empty: a tenth of `data`, held out.
            protocol: A published protocol, or `fast`: many classifiers at once on cached features.
            baselines: Judge random weights too.
            seeds: Number of seeds.
            epochs_scale: Length of the training over that of the protocol.
            workers: Loader processes.
            device: auto, cpu, cuda or cuda:N.
            precision: Number format of the backbone.

        """
        return _judge(
            run, [f"linear/{protocol}"], data=data, test=test, baselines=baselines, seeds=seeds,
            epochs_scale=epochs_scale, workers=workers, device=device, precision=precision,
        )  # fmt: skip

    return int(tyro.cli(linear, args=rest, prog=f"mocokit linear {run}"))


def finetune_command(arguments: list[str]) -> int:
    """Fine-tune a run's backbone on few labels."""
    import tyro

    run, rest = take_name(arguments, "RUN", "finetune RUN --data D [--test T] [--fraction 0.01] [--protocol lr-grid]")

    def finetune(
        *,
        data: str,
        test: str = "",
        fraction: float = 0.01,
        ids: str = "",
        protocol: Literal["lr-grid", "simclr"] = "lr-grid",
        baselines: bool = False,
        seeds: int = 1,
        epochs_scale: float = 1.0,
        workers: int = 2,
        device: str = "auto",
        precision: Literal["fp32", "bf16", "auto"] = "fp32",
    ) -> int:
        """Fine-tune the backbone with a new classifier on a part of the labels.

        Args:
            data: Labelled images to train on.
            test: Labelled images to test on; empty: a tenth of `data`, held out.
            fraction: Share of the training images whose labels are used, equally many a class; 1: all.
            ids: File that names the images to use instead, such as SimCLR's 1percent.txt.
            protocol: lr-grid: SGD, 9 pairs of rates, chosen on a fifth of the labelled images; simclr: LARS.
            baselines: Fine-tune random weights too, which is training from scratch.
            seeds: Number of seeds; each draws its own images.
            epochs_scale: Length of the training over that of the protocol.
            workers: Loader processes.
            device: auto, cpu, cuda or cuda:N.
            precision: Number format of forwards and backwards.

        """
        part = ids or f"{100 * fraction:g}%"
        return _judge(
            run, [f"finetune/{protocol}@{part}"], data=data, test=test, baselines=baselines, seeds=seeds,
            epochs_scale=epochs_scale, workers=workers, device=device, precision=precision,
        )  # fmt: skip

    return int(tyro.cli(finetune, args=rest, prog=f"mocokit finetune {run}"))


def _judge(
    run: str, protocols: Sequence[str], *, data: str, test: str, baselines: bool, seeds: int, epochs_scale: float,
    workers: int, device: str, precision: str,
) -> int:  # fmt: skip
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("evaluate: runs in one process; only `mocokit knn` shares its work among ranks")

    from mocokit.evaluate.evaluation import evaluate, results_folder
    from mocokit.evaluate.results import text_table

    with _live_line() as (say, on_rows):
        rows = evaluate(
            run, data=data, test=test or None, protocols=protocols, baselines=baselines, seeds=range(seeds),
            epochs_scale=epochs_scale, num_workers=workers, device_name=device, precision_name=precision, say=say,
            on_rows=on_rows,
        )  # fmt: skip
    if not rows:
        return 1
    tested = test or f"a held-out tenth of {data}"
    print(f"\naccuracy (%) on {rows[0].test_images:,} test images ({tested})\n")
    print(text_table(rows))
    for line in dict.fromkeys(f"  {row.protocol}, {row.features}: {row.chosen}" for row in rows if row.chosen):
        print(line)
    folder = results_folder(run)
    print(f"\nnumbers: {folder / 'evaluation.json'}; table: {folder / 'evaluation.md'}")
    return 0


@contextlib.contextmanager
def _live_line() -> "Iterator[tuple[Callable[[str], None], Callable[[list[Row]], None]]]":
    """What is going on, on a terminal; results as they come, everywhere but on standard output."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status("reading the images") as status:

        def on_rows(rows: "list[Row]") -> None:
            for row in rows:
                console.print(f"{row.protocol:42} {row.features:12} {100 * row.accuracy:6.1f}", markup=False)

        yield (lambda text: status.update(text.replace("[", "("))), on_rows
