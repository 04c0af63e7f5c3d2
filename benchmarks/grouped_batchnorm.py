"""Measure the cost of BatchNorm groups: plain BatchNorm, grouped BatchNorm, and one pass of the network a group.

Rounds are interleaved; the results are medians.

    python benchmarks/grouped_batchnorm.py
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mocokit.nets.backbones import build_backbone
from mocokit.nets.grouped_batchnorm import batchnorm_groups, convert_batchnorm


def step_of(net: nn.Module, images: torch.Tensor, *, groups: int, at_once: bool) -> Callable[[], None]:
    """Return a function that runs a forward and a backward pass over `images`.

    `at_once`: pass all groups through the network in one call (our grouped BatchNorm); else one call a group.
    """

    def step() -> None:
        if groups == 1:
            net(images).square().mean().backward()
        elif at_once:
            with batchnorm_groups(net, groups, updates_statistics=True):
                net(images).square().mean().backward()
        else:
            for chunk in images.chunk(groups):
                (net(chunk).square().mean() / groups).backward()

    return step


def main() -> None:
    """Time the three ways on this machine and write the milliseconds of a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/grouped_batchnorm.json"))
    args = parser.parse_args()
    table: dict[str, dict[str, float]] = {}
    for arch, stem, size, batch in (("resnet10_w32", "imagenet", 32, 128), ("resnet18", "imagenet", 64, 64)):
        images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        plain = build_backbone(arch, stem=stem).to(memory_format=torch.channels_last)
        grouped = convert_batchnorm(build_backbone(arch, stem=stem)).to(memory_format=torch.channels_last)
        ways = {
            "plain BatchNorm": step_of(plain, images, groups=1, at_once=True),
            "8 groups, chunk by chunk": step_of(grouped, images, groups=8, at_once=True),
            "8 groups, network once a group": step_of(plain, images, groups=8, at_once=False),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(args.repeats + 2):
            for name, step in ways.items():
                start = time.perf_counter()
                step()
                if repeat >= 2:  # the first two rounds warm up
                    times[name].append(1000 * (time.perf_counter() - start))
        table[f"{arch}, {size} px, batch {batch}"] = {name: statistics.median(values) for name, values in times.items()}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    machine = {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    args.results.write_text(json.dumps({"machine": machine, "milliseconds": table}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
