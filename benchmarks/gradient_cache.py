"""Peak memory and time of a SimCLR step on one device, with the gradient cache and without, over the batch size.

MoCo v1 calls end-to-end training on 4096 images intractable (sec. 4.1). With the cache, memory follows the micro-batch
and the step costs one forward pass more; loss and gradient are those of the whole batch. Each measurement is a process
of its own, since a process's peak never falls.

    python benchmarks/gradient_cache.py --batches 256 1024 4096
    python benchmarks/gradient_cache.py --device cuda --arch resnet50 --image-size 224 --ways cached
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import measuring
import torch

from mocokit.methods.groups import GroupLayout
from mocokit.methods.simclr import SimClr
from mocokit.nets.backbones import build_backbone, feature_dim
from mocokit.nets.encoder import Encoder
from mocokit.nets.heads import build_simclr_head
from mocokit.nets.pixels import PixelNormalize

GROUP_ROWS, DIM, TEMPERATURE = 32, 128, 0.1
WAYS = ("cached", "whole")


@dataclass(frozen=True)
class Measured:
    """One step in a fresh process."""

    peak_megabytes: float
    """Device memory on CUDA; on the CPU, the process's peak less what it held before the step."""
    seconds: float
    loss: float
    gradient_norm: float


def build_method(args: argparse.Namespace, way: str, batch: int) -> SimClr:
    """SimCLR with BatchNorm groups of 32 images, the same weights each time."""
    torch.manual_seed(0)
    backbone = build_backbone(args.arch)
    encoder = Encoder(backbone, build_simclr_head(feature_dim(backbone), DIM, num_layers=2))
    groups = batch // GROUP_ROWS
    layout = GroupLayout(bn_groups=groups, micro_groups=min(args.micro_groups, groups) if way == "cached" else 0)
    return SimClr(
        encoder,
        global_batch_size=batch,
        temperature=TEMPERATURE,
        layout=layout,
        pixels=PixelNormalize((0.0,) * 3, (1.0,) * 3),
    ).to(args.device)


def measure_here(args: argparse.Namespace, way: str, batch: int) -> Measured:
    """One step, forward and backward, in this process."""
    method, size = build_method(args, way, batch), args.image_size
    views = [torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=args.device) for _ in "qk"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes
    start = time.perf_counter()
    method.prepare(views[0], views[1], torch.arange(batch), 0)
    total = 0.0
    for loss in method.micro_losses():
        loss.backward()
        total += loss.item()
    norm = torch.stack([p.grad.norm() for p in method.parameters() if p.grad is not None]).norm().item()
    seconds = time.perf_counter() - start
    if torch.device(args.device).type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return Measured(peak_megabytes=peak, seconds=seconds, loss=total, gradient_norm=norm)


def measure(way: str, batch: int) -> Measured | None:
    """The same in a fresh process; None where memory did not suffice."""
    command = [sys.executable, __file__, *sys.argv[1:], "--here", way, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{way}, batch {batch}: ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return Measured(**json.loads(done.stdout))


def main() -> None:
    """Measure each way at each batch size and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet10_w32")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--micro-groups", type=int, default=2, help="groups of 32 that go through the network at once")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--here", nargs=2, metavar=("WAY", "BATCH"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "gradient_cache.json")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(asdict(measure_here(args, args.here[0], int(args.here[1])))))
        return
    rows, table = list[tuple[str, ...]](), dict[str, dict[str, object]]()
    for batch in args.batches:
        for way in args.ways:
            got = measure(way, batch)
            table.setdefault(str(batch), {})[way] = None if got is None else asdict(got)
            cells = ("-",) * 4 if got is None else (
                f"{got.peak_megabytes:,.0f}", f"{got.seconds:.1f}", f"{got.loss:.6f}", f"{got.gradient_norm:.6f}"
            )  # fmt: skip
            rows.append((f"{batch:,}", way, *cells))
    print(measuring.markdown_table(("batch", "way", "peak MB", "s", "loss", "|gradient|"), rows))
    setup = {"arch": args.arch, "image_size": args.image_size, "device": args.device, "group_rows": GROUP_ROWS}
    measuring.save_result(args.results, {**setup, "micro_groups": args.micro_groups, "by_batch": table})


if __name__ == "__main__":
    main()
