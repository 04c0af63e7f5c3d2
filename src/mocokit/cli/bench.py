"""The command `mocokit bench`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mocokit.cli.arguments import take_preset, tell

if TYPE_CHECKING:
    from mocokit.plan.bench import BenchResult


def bench_command(arguments: list[str]) -> int:
    """Measure what limits a run, and print advice."""
    import json
    from dataclasses import asdict

    import tyro

    from mocokit.config.schema import Config

    flags = "--data D [--seconds S] [--json FILE] [any flag of pretrain]"
    name, preset, rest = take_preset(arguments, "bench", flags)

    @dataclass(frozen=True, kw_only=True)
    class Bench:
        config: Annotated[Config, tyro.conf.arg(name="")]
        seconds: float = 10.0
        """Length of each of the three measurements (seconds)."""
        json: str = ""
        """File to write all numbers to; `-`: print them instead of the table."""

    asked = tyro.cli(Bench, args=rest, default=Bench(config=preset), prog=f"mocokit bench {name}")

    from mocokit.plan.bench import bench

    result = bench(asked.config, seconds=asked.seconds, on_data=tell)
    text = json.dumps({**asdict(result), "bound": result.bound}, indent=1)
    if asked.json == "-":
        print(text)
        return 0
    _print_table(result)
    if asked.json:
        Path(asked.json).write_text(text + "\n", encoding="utf-8")
    return 0


def _print_table(result: "BenchResult") -> None:
    size = result.global_batch_size
    whole = sum(result.pixels_ms.values())
    print(f"views of an image ({result.median_megapixels:.2g} megapixels), one core: {whole:.2f} ms")
    for name, milliseconds in result.pixels_ms.items():
        print(f"  {name:26}{milliseconds:10.2f} ms{milliseconds / whole:8.0%}")
    step = sum(result.step_ms.values())
    print(f"step of {size} images, {result.precision} on {result.device}: {step:.0f} ms")
    for name, milliseconds in result.step_ms.items():
        print(f"  {name:26}{milliseconds:10.1f} ms{milliseconds / step:8.0%}")
    if result.loss_ms:
        print(f"  {'(the loss in it)':26}{result.loss_ms:10.1f} ms{result.loss_ms / step:8.0%}")
    print("images per second")
    makers = f"{result.workers} workers" if result.workers else "threads"
    print(f"  {f'loader alone, {makers}':26}{result.loader_images_per_s:10,.0f}")
    print(f"  {'step alone':26}{result.step_images_per_s:10,.0f}")
    print(f"  {'both: the run':26}{result.images_per_s:10,.0f}   waiting for images {result.data_wait_share:.0%}")
    words = {
        "pixels": "making views limits this run",
        "step": "the training step limits this run",
        "both": f"views and step share the {result.cores} cores; views take {result.pixels_share:.0%}",
    }
    print(f"{words[result.bound]}; what to change:")
    for line in result.advice:
        print(f"  - {line}")
