"""Write docs/scaling.md: the planner's numbers for moco-v2 on 1 to 1,024 H100s.

python benchmarks/plan_table.py
"""

import argparse
from pathlib import Path

from mocokit.config.presets import get_preset
from mocokit.config.toml import replace_settings
from mocokit.plan.cost_model import Surroundings, plan
from mocokit.plan.devices import DEVICES
from mocokit.report.text_tables import markdown_columns

WORLD_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
DATA_SIZES = {"1.28 M": 1_281_167, "10 M": 10**7, "100 M": 10**8, "1 B": 10**9}
PLACE = Path(__file__).parent.parent / "docs" / "scaling.md"

HEAD = """\
# Scaling (computed, not measured)

Every number on this page was computed by `mocokit plan`; `benchmarks/plan_table.py` wrote it. No run of this size was
made. The model is in `src/mocokit/plan/cost_model.py`, with its constants and their sources in the table of devices;
its errors against measurements on CPU cores are in `benchmarks/results/plan_accuracy.json`. One H100 was at hand
once: with all 8 BatchNorm groups at a time it took 70.2 ms a step (planned: 69.1, since the effect of torch.compile is
fitted to it), eager with one group 98.7 ms (105.9) and 11.95 GB of torch's memory (12.10).

The run is `moco-v2` (ResNet-50, 224 px, K 65,536) in bf16, on nodes of 8 H100 with 50 GB/s between nodes and 110 kB an
image. Up to 8 devices it is the papers' run: 256 images in 8 BatchNorm groups, one group at a time, compiled. Beyond,
each device adds a group of 32 images to the batch, so the run is no longer the papers'.

Evaluation on several GPUs is described in [evaluation.md](evaluation.md#several-gpus); its time is not planned here.
`benchmarks/multi_gpu.py` proves and times the step on 2 to 8 GPUs; so far only its twin on two CPU ranks has run
(`benchmarks/results/multi_gpu_twin.json`): the trajectory, the error and the hang are as they should be; its images per
second come from 2 cores that other work kept busy, and say nothing.
"""


def main() -> None:
    """Compute a row for each world size and write the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = list[list[str]]()
    bound_from = ""
    for world_size in WORLD_SIZES:
        groups = max(8, world_size)
        settings = {
            "run.precision": "bf16",
            "method.bn_groups": groups,
            "data.global_batch_size": 32 * groups,
            "method.micro_groups": 1,
            "optim.epochs": 1,
            "run.compile": "on",
        }
        config = replace_settings(get_preset("moco-v2"), settings)
        made = plan(config, device="H100", world_size=world_size, num_images=10**9, around=Surroundings())
        hours = [size / made.images_per_s / 3600 for size in DATA_SIZES.values()]
        rows.append(
            [
                f"{world_size:,}",
                f"{32 * groups:,}",
                f"{sum(made.memory_bytes.values()) / 1e9:.1f}",
                f"{1000 * made.step_s:.1f}",
                f"{made.waiting_s / made.step_s:.0%}",
                f"{made.images_per_s:,.0f}",
                f"{made.storage_per_node / 1e6:,.0f}",
                *(f"{hour:,.2f}" for hour in hours),
                f"{hours[-1] * world_size * DEVICES['H100'].watts * Surroundings().power_overhead / 1000:,.0f}",
            ]
        )
        if made.bound == "communication" and not bound_from:
            without = plan(
                replace_settings(config, {"method.shuffle": False}),
                device="H100",
                world_size=world_size,
                num_images=10**9,
            )
            bound_from = (
                f"From {world_size:,} devices on, communication limits the run: {1000 * made.waiting_s:.1f} of "
                f"{1000 * made.step_s:.1f} ms, of which exchanging the key views for shuffling BN takes "
                f"{1000 * (made.waiting_s - without.waiting_s):.1f}. Storage limits it if a node "
                "can't read as many MB/s as the column says."
            )
    bound_from = bound_from or (
        f"Computing limits the run up to {WORLD_SIZES[-1]:,} devices, where waiting for the network takes "
        f"{made.waiting_s / made.step_s:.0%} of a step. Storage limits it if a node can't read as many MB/s as the "
        "column says."
    )
    header = (
        "GPUs",
        "batch",
        "GB a GPU",
        "ms a step",
        "waiting for the network",
        "images/s",
        "MB/s a node",
        *(f"h an epoch, {size}" for size in DATA_SIZES),
        "kWh an epoch, 1 B",
    )
    PLACE.write_text(f"{HEAD}\n{markdown_columns(header, rows)}\n{bound_from}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
