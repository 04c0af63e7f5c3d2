"""`knn` and `verify`."""

from typing import TYPE_CHECKING, Annotated

from mocokit.cli.arguments import take_name

if TYPE_CHECKING:
    from mocokit.evaluate.report_knn import KnnRow


def knn_command(arguments: list[str]) -> int:
    """Judge a run's backbone."""
    import tyro

    run, rest = take_name(arguments, "RUN", "knn RUN --data D [--test T] [--baselines]")

    def knn(
        *,
        data: str,
        test: str = "",
        baselines: bool = False,
        workers: int = -1,
        device: str = "auto",
        seed: int = 0,
    ) -> int:
        """kNN accuracy of a run's frozen backbone; under torchrun each rank holds a part of the images.

        Args:
            data: Labelled images that vote.
            test: Labelled images to classify; empty: a tenth of `data`, held out.
            baselines: Also judge raw pixels and the same network with random weights.
            workers: Loader processes; 0: threads; -1: threads on a CPU, else the cores.
            device: auto, cpu, cuda or cuda:N.
            seed: Seed of the random weights and of the held-out tenth.

        """
        from mocokit import distributed
        from mocokit.evaluate.report_knn import compare_with_baselines

        rows = compare_with_baselines(
            run,
            bank=data,
            queries=test or None,
            baselines=baselines,
            num_workers=workers,
            device_name=device,
            seed=seed,
        )
        if distributed.started_as_main():
            print_knn(rows)
        return 0

    return int(tyro.cli(knn, args=rest, prog=f"mocokit knn {run}"))


def print_knn(rows: "list[KnnRow]") -> None:
    """A row a kind of features, a column a protocol."""
    protocols = list(rows[0].accuracy)
    print("kNN accuracy (%)".ljust(18) + "".join(f"{protocol!s:>14}" for protocol in protocols))
    for row in rows:
        print(row.features.ljust(18) + "".join(f"{100 * row.accuracy[protocol]:14.1f}" for protocol in protocols))


def verify_command(arguments: list[str]) -> int:
    """Replay recorded runs, or check the augmentations."""
    import tyro

    def verify(
        traces: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
        *,
        rtol: float = 1e-12,
        micro_groups: int = 0,
        augment: bool = False,
        data: str = "",
        device: str = "auto",
    ) -> int:
        """Replay recorded official runs in float64 and compare every recorded quantity.

        Args:
            traces: Trace files; none: the golden traces that come with mocokit.
            rtol: Largest relative error that passes.
            micro_groups: BatchNorm groups that go through the network at once; 0: all.
            augment: Compare the fast augmentations with Pillow's and torchvision's instead.
            data: With --augment: images to compare on; empty: the embedded sample.
            device: With --augment: where the batched augmentation runs.

        """
        if augment:
            return _print_parity(data, device)
        return _print_replay(traces, rtol=rtol, micro_groups=micro_groups)

    return int(tyro.cli(verify, args=arguments, prog="mocokit verify"))


def _print_replay(traces: tuple[str, ...], *, rtol: float, micro_groups: int) -> int:
    from mocokit import distributed
    from mocokit.run.verify import verify

    rows = verify(traces, micro_groups=micro_groups)
    wrong = sum(not row.relative_error <= rtol for row in rows)
    if distributed.started_as_main():
        print(f"{'trace':18}{'quantity':32}{'relative error':>16}")
        for row in rows:
            mark = "" if row.relative_error <= rtol else "  WRONG"
            print(f"{row.trace:18}{row.quantity:32}{row.relative_error:16.1e}{mark}")
        print(f"{len(rows) - wrong} of {len(rows)} quantities within {rtol:g} of the official run")
    return 1 if wrong else 0


def _print_parity(data: str, device: str) -> int:
    import PIL
    import torchvision

    from mocokit.data.augment.recipes import AUG_PLUS
    from mocokit.data.parity import draw_parity, parity_images, pixel_parity
    from mocokit.data.sources.open_source import open_source
    from mocokit.engine.precision import pick_device
    from mocokit.run.demo import sample_path

    images = parity_images(open_source(data or sample_path("test")), count=200, seed=0)
    pixels = pixel_parity(images, device=pick_device(device, local_rank=0), seed=0)
    print(f"views against Pillow {PIL.__version__} and torchvision {torchvision.__version__}, in levels of 0..255")
    print(f"{'done by':18}{'operation':30}{'views':>6}{'max error':>11}{'mean error':>12}{'allowed':>9}")
    for row in pixels:
        mark = "" if row.passes else "  WRONG"
        print(
            f"{row.engine:18}{row.operation:30}{row.num_views:6}{row.max_error:11}{row.mean_error:12.3f}"
            f"{row.allowed:9.1f}{mark}"
        )
    draws = draw_parity(AUG_PLUS, num_draws=5000, seed=0)
    print("\ndrawn parameters of aug+ against torchvision's own draws (two-sample Kolmogorov-Smirnov, limit 2.7)")
    for start in range(0, len(draws), 4):
        cells = [
            f"{row.parameter} {row.statistic:.2f}{'' if row.passes else ' WRONG'}" for row in draws[start : start + 4]
        ]
        print("  " + "".join(cell.ljust(24) for cell in cells).rstrip())
    wrong = sum(not row.passes for row in pixels) + sum(not row.passes for row in draws)
    print(f"\n{len(pixels) + len(draws) - wrong} of {len(pixels) + len(draws)} checks pass")
    return 1 if wrong else 0
