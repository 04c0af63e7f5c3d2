"""The command `mocokit verify`: replay recorded official runs, or check the augmentations."""

from typing import Annotated

from mocokit.cli.arguments import parse


def verify_command(arguments: list[str]) -> int:
    """Replay recorded runs, or compare the augmentations with Pillow's and torchvision's."""
    import tyro

    def verify(
        traces: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[TRACE.npz ...]")] = (),
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
            micro_groups: BatchNorm groups in one forward; 0: all.
            augment: Compare the fast augmentations with Pillow's and torchvision's instead.
            data: With --augment: images to compare on; empty: the embedded sample.
            device: With --augment: device of the batched augmentation.

        """
        if augment:
            return _print_parity(data, device)
        return _print_replay(traces, rtol=rtol, micro_groups=micro_groups)

    return parse(verify, arguments, prog="mocokit verify", example="mocokit verify --augment --data photos")


def _print_replay(traces: tuple[str, ...], *, rtol: float, micro_groups: int) -> int:
    """Replay the traces and print one row per quantity; return 1 if one is off by more than `rtol`."""
    from mocokit import distributed
    from mocokit.run.verify import verify

    rows = verify(traces, micro_groups=micro_groups)
    wrong = sum(not row.relative_error <= rtol for row in rows)  # NaN is wrong too
    if distributed.started_as_main():
        print(f"{'trace':18}{'quantity':32}{'relative error':>16}")
        for row in rows:
            mark = "" if row.relative_error <= rtol else "  WRONG"
            print(f"{row.trace:18}{row.quantity:32}{row.relative_error:16.1e}{mark}")
        print(f"{len(rows) - wrong} of {len(rows)} quantities within {rtol:g} of the official run")
    return 1 if wrong else 0


def _print_parity(data: str, device: str) -> int:
    """Compare pixels and drawn parameters of the augmentations; return 1 if a check fails."""
    import PIL
    import torchvision

    from mocokit.cli.arguments import tell
    from mocokit.data.augment.recipes import AUG_PLUS
    from mocokit.data.parity import draw_parity, parity_images, pixel_parity
    from mocokit.data.sources.left_out import describe_source
    from mocokit.data.sources.open_source import open_source
    from mocokit.engine.device import pick_device
    from mocokit.run.demo import sample_path

    source = open_source(data or sample_path("test"))
    tell(f"data: {describe_source(source)}")
    images = parity_images(source, count=200, seed=0)
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
