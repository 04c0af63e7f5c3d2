"""Time one optimizer step on synthetic images: a plain PyTorch loop, lightly, and mocokit in fp32 and bf16.

Rounds are interleaved; the results are medians. The operations of a step are counted once, on the plain loop (query
forward and backward, key forward, logits), and compared with the fastest matrix product of this machine.

    python benchmarks/step.py --case r50_224
    python benchmarks/step.py --case r50_224_gpu
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measuring
import torch
from peers import lightly_moco, plain_pytorch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mocokit.config.presets import get_preset
from mocokit.config.toml import replace_settings
from mocokit.data.batch import ViewBatch
from mocokit.engine.device import pick_device
from mocokit.engine.metrics import MeterBoard, StepClock
from mocokit.engine.stop_signal import StopSignal
from mocokit.engine.train import train
from mocokit.nets.backbones import build_backbone
from mocokit.report.text_tables import markdown_columns
from mocokit.run.build import build_run

LR = 0.03
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its batch, and the number of BatchNorm groups that a user would choose."""

    arch: str
    image_size: int
    batch: int
    bn_groups: int
    queue_size: int = 65536
    device: str = "cpu"


CASES = {
    "r50_224": Case(arch="resnet50", image_size=224, batch=16, bn_groups=2),
    "r18_64": Case(arch="resnet18", image_size=64, batch=128, bn_groups=4),
    "r50_224_gpu": Case(arch="resnet50", image_size=224, batch=256, bn_groups=8, device="cuda"),
}


def float_views(case: Case) -> tuple[Tensor, Tensor]:
    """Return two batches (N, 3, H, W) on the device, as the peers' loaders make them: float and normalised."""
    shape = (case.batch, 3, case.image_size, case.image_size)
    return torch.randn(shape, device=case.device), torch.randn(shape, device=case.device)


def plain_step(case: Case) -> Step:
    """Return a step of the plain PyTorch loop."""
    model = plain_pytorch.MoCo(build_backbone(case.arch), case.queue_size).to(case.device)
    optimizer = plain_pytorch.build_optimizer(model, LR)
    query, key = float_views(case)
    return lambda: plain_pytorch.train_step(model, optimizer, query, key)


def lightly_step(case: Case, *, tuned: bool) -> Step:
    """Return a step of the lightly script; if `tuned`, with bf16 autocast and channels_last, which a user can add."""
    layout = torch.channels_last if tuned else torch.contiguous_format
    model = lightly_moco.MoCo(build_backbone(case.arch)).to(case.device).to(memory_format=layout)
    criterion = lightly_moco.build_criterion(case.queue_size).to(case.device)
    optimizer = lightly_moco.build_optimizer(model, LR)
    query, key = (views.contiguous(memory_format=layout) for views in float_views(case))

    def step() -> None:
        with torch.autocast(case.device, dtype=torch.bfloat16, enabled=tuned):
            loss = lightly_moco.compute_loss(model, criterion, query, key)
        lightly_moco.descend(optimizer, loss)

    return step


def mocokit_step(case: Case, folder: Path, *, precision: str, bn_groups: int, compiled: bool = False) -> Step:
    """Return a step of mocokit's engine, from uint8 views to meters."""
    settings = {
        "data.source": str(folder),
        "data.image_size": case.image_size,
        "data.global_batch_size": case.batch,
        "model.arch": case.arch,
        "method.queue_size": case.queue_size,
        "method.bn_groups": bn_groups,
        "run.precision": precision,
        "run.compile": "on" if compiled else "off",
    }
    config = replace_settings(get_preset("moco-v2"), settings)
    device = pick_device(case.device, local_rank=0)
    parts = build_run(config, device)
    shape = (2, case.batch, case.image_size, case.image_size, 3)
    query, key = torch.randint(0, 256, shape, dtype=torch.uint8, device=device).permute(0, 1, 4, 2, 3)
    batch = ViewBatch(query=query, key=key, image_ids=torch.arange(case.batch, device=device))
    # A recorder without files: the work within a step is done, the work between steps (logs, saves) is not.
    board = MeterBoard(device)
    recorder: Any = SimpleNamespace(
        count=lambda views, rows, *, step, finite: board.add(rows, step=step, finite=finite),
        clock=StepClock(),
        after_step=lambda step, **_: False,
    )
    return lambda: train(
        parts.method,
        [batch],
        optimizer=parts.optimizer,
        precision=parts.precision,
        device=device,
        lr_of_step=lambda step: LR,
        start_step=0,
        seed=0,
        recorder=recorder,
        signals=StopSignal(),
    )


def finished(step: Step, device: str) -> Step:
    """Return the step, made to wait until the device has finished it."""
    if device == "cpu":
        return step

    def whole() -> None:
        step()
        torch.cuda.synchronize()

    return whole


def matmul_peak(dtype: torch.dtype, device: str, *, repeats: int = 20) -> float:
    """Return the GFLOP/s of the fastest of `repeats` square matrix products."""
    side = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = finished(lambda: torch.mm(a, b), device)
    product()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e9


def count_gflop(step: Step) -> float:
    """Return the billions of multiplications and additions in a step's convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops()) / 1e9


def measure(case: Case, *, rounds: int) -> dict[str, Any]:
    """Time every side, count operations, and return all numbers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(case.batch):  # a run needs images to be built; the step never reads them
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        sides = {
            "plain PyTorch fp32": plain_step(case),
            "lightly fp32": lightly_step(case, tuned=False),
            "lightly bf16 + channels_last": lightly_step(case, tuned=True),
        }
        for precision in ("fp32", "bf16"):
            for groups in (case.bn_groups, 1):
                step = mocokit_step(case, folder, precision=precision, bn_groups=groups)
                sides[f"mocokit {precision}, bn_groups {groups}"] = step
        if case.device != "cpu":
            step = mocokit_step(case, folder, precision="bf16", bn_groups=case.bn_groups, compiled=True)
            sides[f"mocokit bf16, bn_groups {case.bn_groups}, compiled"] = step
    gflop = count_gflop(sides["plain PyTorch fp32"])
    peaks = {name: matmul_peak(dtype, case.device) for name, dtype in DTYPES.items()}
    timed = {name: finished(step, case.device) for name, step in sides.items()}
    seconds = measuring.time_interleaved(timed, rounds=rounds, warm_up=2)
    return {"case": asdict(case), "gflop_per_step": gflop, "matmul_peak_gflop_per_s": peaks, "seconds": seconds}


def summarise(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the median, speed and ratios of each side."""
    seconds = result["seconds"]
    summary = {}
    for name, values in seconds.items():
        median = statistics.median(values)
        peak = result["matmul_peak_gflop_per_s"]["bf16" if "bf16" in name else "fp32"]
        summary[name] = {
            "milliseconds": 1000 * median,
            "images_per_s": result["case"]["batch"] / median,
            "gflop_per_s": result["gflop_per_step"] / median,
            "share_of_peak": result["gflop_per_step"] / median / peak,
            "against_lightly": measuring.median_ratio(seconds["lightly fp32"], values),
            "against_plain": measuring.median_ratio(seconds["plain PyTorch fp32"], values),
        }
    return summary


def report(result: dict[str, Any]) -> str:
    """Return a line about operations and peaks, and the table as Markdown."""
    header = ("step", "ms", "images/s", "GFLOP/s", "of matmul peak", "x lightly fp32", "x plain PyTorch")
    rows = [
        (
            name,
            f"{row['milliseconds']:.0f}",
            f"{row['images_per_s']:.1f}",
            f"{row['gflop_per_s']:.0f}",
            f"{row['share_of_peak']:.0%}",
            measuring.show_ratio(row["against_lightly"]),
            measuring.show_ratio(row["against_plain"]),
        )
        for name, row in result["summary"].items()
    ]
    case = result["case"]
    peaks = result["matmul_peak_gflop_per_s"]
    return (
        f"{case['arch']}, {case['image_size']} px, batch {case['batch']}, K {case['queue_size']}: "
        f"{result['gflop_per_step']:.0f} GFLOP a step; matmul peak {peaks['fp32']:.0f} GFLOP/s fp32, "
        f"{peaks['bf16']:.0f} bf16\n\n" + markdown_columns(header, rows)
    )


def main() -> None:
    """Time the cases, and write one JSON file for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, nargs="+", default=["r50_224", "r18_64"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if "cuda" not in {CASES[name].device for name in args.case}:
        measuring.use_cores(args.cores)
    torch.manual_seed(0)
    for name in args.case:
        result = measure(CASES[name], rounds=args.rounds)
        result["summary"] = summarise(result)
        measuring.save_result(args.results / f"step_{name}.json", result)
        print(report(result), flush=True)


if __name__ == "__main__":
    main()
