"""`mocokit knn`: kNN accuracy of a run's frozen backbone."""

from typing import TYPE_CHECKING

from mocokit.cli.arguments import RUN_NOTE, parse, take_name, tell, with_label_column

if TYPE_CHECKING:
    from mocokit.evaluate.report_knn import KnnRow


def knn_command(arguments: list[str]) -> int:
    """Print the kNN accuracy of a run."""
    run, rest = take_name(arguments, "RUN", "knn RUN --data D [--test T] [--baselines]")

    def knn(
        *,
        data: str,
        test: str = "",
        label_column: str = "",
        path_column: str = "",
        baselines: bool = False,
        workers: int = -1,
        device: str = "auto",
        seed: int = 0,
        max_bad_share: float = 0.01,
    ) -> int:
        """Print the kNN accuracy of a run's frozen backbone; under torchrun, the images are sharded over the ranks.

        Args:
            data: Labelled images that vote.
            test: Labelled images to classify; empty: the test part of `data` if that is a split (train/, val/), else
                a held-out tenth.
            label_column: Column of the labels of a .csv or .tsv list, by its header or number; CIFAR-100: coarse.
            path_column: Column of its paths.
            baselines: Also measure raw pixels and the same network with random weights.
            workers: Loader processes; 0: threads; -1: threads on a CPU, else the cores.
            device: auto, cpu, cuda, cuda:N or mps.
            seed: Seed of the random weights and of the held-out tenth.
            max_bad_share: Largest share of either set that may be unreadable; such images are left out.

        """
        from mocokit import distributed
        from mocokit.evaluate.report_knn import compare_with_baselines

        bank, queries = with_label_column(data, test, label_column, path_column)
        rows = compare_with_baselines(
            run,
            bank=bank,
            queries=queries,
            baselines=baselines,
            num_workers=workers,
            device_name=device,
            seed=seed,
            max_bad_share=max_bad_share,
            on_data=tell,
        )
        if distributed.started_as_main():
            print_knn(rows)
        return 0

    example = "mocokit knn runs/a --data photos --baselines"
    return parse(knn, rest, prog=f"mocokit knn {run}", example=example, note=RUN_NOTE)


def print_knn(rows: "list[KnnRow]") -> None:
    """Print one row per kind of features, with one column per protocol."""
    protocols = list(rows[0].accuracy)
    print("kNN accuracy (%)".ljust(18) + "".join(f"{protocol!s:>14}" for protocol in protocols))
    for row in rows:
        print(row.features.ljust(18) + "".join(f"{100 * row.accuracy[protocol]:14.1f}" for protocol in protocols))
    print(f"of {rows[0].num_queries:,} test images; {rows[0].num_bank:,} training images vote")
