"""Measure peak memory and time of a SimCLR step on one device over the batch size, with and without gradient cache.

MoCo v1 calls end-to-end training on 4096 images intractable (sec. 4.1). With the cache, memory grows with the
micro-batch, and a step costs one more forward pass. Loss and gradient are those of the whole batch (tests/methods).

    python benchmarks/gradient_cache.py --batches 256 1024 4096
    python benchmarks/gradient_cache.py --device cuda --arch resnet50 --image-size 224 --ways cached
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import measuring

from mocokit.config.presets import get_preset
from mocokit.config.toml import replace_settings
from mocokit.plan.measure_step import StepCost, measure_step
from mocokit.report.text_tables import markdown_columns

GROUP_ROWS = 32
WAYS = ("cached", "whole")


def measure(args: argparse.Namespace, way: str, batch: int) -> StepCost | None:
    """Return the cost of a SimCLR step with BatchNorm groups of 32 images; None if it failed for lack of memory."""
    groups = batch // GROUP_ROWS
    config = replace_settings(
        get_preset("simclr"),
        {
            "model.arch": args.arch,
            "data.image_size": args.image_size,
            "data.global_batch_size": batch,
            "method.bn_groups": groups,
            "method.micro_groups": min(args.micro_groups, groups) if way == "cached" else 0,
            "run.device": args.device,
        },
    )
    try:
        return measure_step(config)
    except ValueError as error:
        print(f"{way}, batch {batch}: {error}")
        return None


def main() -> None:
    """Measure both ways at each batch size, print the table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet10_w32")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--micro-groups", type=int, default=2, help="groups of 32 images in a micro-batch")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "gradient_cache.json")
    args = parser.parse_args()
    rows = list[tuple[str, ...]]()
    table = dict[str, dict[str, object]]()
    for batch in args.batches:
        for way in args.ways:
            got = measure(args, way, batch)
            table.setdefault(str(batch), {})[way] = None if got is None else asdict(got)
            cells = ("-", "-") if got is None else (f"{got.peak_megabytes:,.0f}", f"{got.step_s:.1f}")
            rows.append((f"{batch:,}", way, *cells))
    print(markdown_columns(("batch", "way", "peak MB", "s a step"), rows, words=("way",)))
    setup = {"arch": args.arch, "image_size": args.image_size, "device": args.device, "group_rows": GROUP_ROWS}
    measuring.save_result(args.results, {**setup, "micro_groups": args.micro_groups, "by_batch": table})


if __name__ == "__main__":
    main()
