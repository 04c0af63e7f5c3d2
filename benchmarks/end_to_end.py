"""Time `mocokit pretrain` against two peers, from a folder of JPEG files to a pre-trained backbone.

Each side is one command, with the same images, epochs, batch, queue and cores. The peers have 2 workers, mocokit has
its default of one worker a core. Rounds are interleaved. The result is the median wall-clock time, start-up included.

    python benchmarks/end_to_end.py --case small_32_12mp --repeats 3
    python benchmarks/end_to_end.py --tiny --plain                     # only test that the scripts work
"""

import argparse
import json
import math
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import measuring
from photographs import LITTLE_NOISE, NOISE, make_folder

from mocokit.report.text_tables import markdown_columns

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Case:
    """Settings of a run. Precision and BatchNorm groups are mocokit's alone; the peers share all others."""

    arch: str
    image_size: int
    batch: int
    bn_groups: int
    queue_size: int
    images: int
    epochs: int
    width: int = 500
    height: int = 375
    precision: str = "bf16"
    noise: float = NOISE
    """Noise in the photographs, which determines the size of a file."""


SMALL_32 = Case(
    arch="resnet10_w32",
    image_size=32,
    batch=128,
    bn_groups=4,
    queue_size=4096,
    images=4096,
    epochs=10,
    precision="fp32",
)
SMALL_32_12MP = replace(SMALL_32, images=256, epochs=5, width=4000, height=3000)

# Lengths are chosen so that the slowest side takes one to three minutes on 2 cores.
CASES = {
    "r18_64": Case(arch="resnet18", image_size=64, batch=128, bn_groups=4, queue_size=65536, images=2048, epochs=4),
    "r50_224": Case(arch="resnet50", image_size=224, batch=16, bn_groups=2, queue_size=65536, images=256, epochs=2),
    "small_32": SMALL_32,
    "small_32_12mp": SMALL_32_12MP,
    "small_32_12mp_2mb": replace(SMALL_32_12MP, noise=LITTLE_NOISE),
}


def make_images(case: Case, work: Path) -> Path:
    """Write the case's photographs into a folder below `work`, if they are not there yet, and return the folder."""
    data = work / f"{case.width}x{case.height}x{case.images}_noise{case.noise:g}"
    make_folder(data, count=case.images, width=case.width, height=case.height, noise=case.noise)
    return data


def shrink(case: Case) -> Case:
    """Return a case of the same shape that takes a few seconds."""
    width = min(case.width, 1200)
    height = min(case.height, 900)
    return replace(case, batch=16, queue_size=256, images=32, epochs=1, width=width, height=height)


def mocokit_command(case: Case, data: Path, out: Path) -> list[str]:
    """Return the command of `mocokit pretrain`, as the README shows it."""
    return [
        sys.executable,
        "-m",
        "mocokit",
        "pretrain",
        "moco-v2",
        "--data",
        str(data),
        "--out",
        str(out),
        "--arch",
        case.arch,
        "--image-size",
        str(case.image_size),
        "--global-batch-size",
        str(case.batch),
        "--epochs",
        str(case.epochs),
        "--precision",
        case.precision,
        "--method.queue-size",
        str(case.queue_size),
        "--method.bn-groups",
        str(case.bn_groups),
        "--run.knn-every",
        "0",
    ]


def peer_command(script: str, case: Case, data: Path, out: Path) -> list[str]:
    """Return the command of a script in peers/."""
    return [
        sys.executable,
        str(HERE / "peers" / script),
        "--data",
        str(data),
        "--out",
        str(out),
        "--arch",
        case.arch,
        "--image-size",
        str(case.image_size),
        "--batch-size",
        str(case.batch),
        "--epochs",
        str(case.epochs),
        "--workers",
        "2",
        "--queue-size",
        str(case.queue_size),
    ]


class Side:
    """A command that is run several times, and its measurements.

    Args:
        name: Name in the table.
        command: Command line.
        out: File or folder that the command writes; it is removed before each run.

    """

    def __init__(self, name: str, command: Sequence[str], out: Path) -> None:
        self.name = name
        self.command = command
        self.out = out
        self.log = out.with_suffix(".log")
        self.seconds: list[float] = []
        """Wall-clock time of each run, start-up included."""
        self.core_seconds: list[float] = []
        """CPU time of each run: user and system time of the process and its workers."""
        self.last_loss: list[float] = []
        self.shares: list[dict[str, float]] = []
        """Result of `shares_of` for each run of mocokit; empty for the peers."""

    def run(self, batch: int) -> None:
        """Run the command and append its measurements.

        Raises:
            RuntimeError: The command failed, or its loss is not finite.

        """
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.unlink(missing_ok=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        with self.log.open("w", encoding="utf-8") as log:
            done = subprocess.run(self.command, stdout=log, stderr=subprocess.STDOUT, check=False)
        wall_s = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise RuntimeError(f"{self.name}: exit status {done.returncode}; see {self.log}")
        loss = self._read_loss()
        if not math.isfinite(loss):
            raise RuntimeError(f"{self.name}: the loss is {loss}; see {self.log}")
        self.seconds.append(wall_s)
        self.core_seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        self.last_loss.append(loss)
        if self.out.is_dir():
            self.shares.append(shares_of(self.out, batch, wall_s))

    def _read_loss(self) -> float:
        if self.out.is_dir():
            return read_metrics(self.out)[-1]["loss"]
        return float(re.findall(r"loss: (\S+)", self.log.read_text(encoding="utf-8"))[-1])


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return the lines of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def shares_of(run: Path, batch: int, wall_s: float) -> dict[str, float]:
    """Return the shares of a mocokit run's wall-clock time; the three add up to 1."""
    steps = 0.0
    loop_s = 0.0
    waiting_s = 0.0
    for line in read_metrics(run):
        interval_s = (line["step"] - steps) * batch / line["images_per_s"]
        steps = line["step"]
        loop_s = loop_s + interval_s
        waiting_s = waiting_s + line["data_wait_share"] * interval_s
    return {
        "start and end": 1 - loop_s / wall_s,
        "waiting for data": waiting_s / wall_s,
        "training": (loop_s - waiting_s) / wall_s,
    }


def measure(case: Case, data: Path, work: Path, *, repeats: int, plain: bool) -> list[Side]:
    """Run all sides in turn, `repeats` times."""
    lightly = work / "lightly.pt"
    mocokit = work / "mocokit"
    loop = work / "plain_pytorch.pt"
    sides = [
        Side("lightly", peer_command("lightly_moco.py", case, data, lightly), lightly),
        Side("mocokit", mocokit_command(case, data, mocokit), mocokit),
    ]
    if plain:
        sides.append(Side("plain PyTorch", peer_command("plain_pytorch.py", case, data, loop), loop))
    for number in range(repeats):
        for side in sides:
            side.run(case.batch)
            print(f"round {number + 1}, {side.name}: {side.seconds[-1]:.1f} s", flush=True)
    return sides


def summarise(case: Case, data: Path, sides: Sequence[Side]) -> dict[str, Any]:
    """Return the numbers of all runs, and their medians and ratios."""
    ours = next(side for side in sides if side.name == "mocokit")
    return {
        "case": asdict(case),
        "bytes_per_file": round(statistics.mean(path.stat().st_size for path in data.iterdir())),
        "sides": {
            side.name: {
                "median_s": statistics.median(side.seconds),
                "images_per_s": case.images // case.batch * case.batch * case.epochs / statistics.median(side.seconds),
                "mocokit_is_faster": measuring.median_ratio(side.seconds, ours.seconds),
                "seconds": side.seconds,
                "core_seconds": side.core_seconds,
                "last_loss": side.last_loss,
            }
            for side in sides
        },
        "mocokit_shares": {part: statistics.median(run[part] for run in ours.shares) for part in ours.shares[0]},
    }


def report(name: str, result: dict[str, Any]) -> str:
    """Return the table as Markdown, and the shares of mocokit's time."""
    case = result["case"]
    rows = [
        (
            side,
            f"{row['median_s']:.1f}",
            f"{min(row['seconds']):.1f} to {max(row['seconds']):.1f}",
            f"{row['images_per_s']:.1f}",
            f"{statistics.median(row['core_seconds']):.0f}",
            measuring.show_ratio(row["mocokit_is_faster"]),
        )
        for side, row in result["sides"].items()
    ]
    shares = ", ".join(f"{part} {share:.0%}" for part, share in result["mocokit_shares"].items())
    return (
        f"{name}: {case['arch']}, {case['image_size']} px, batch {case['batch']}, {case['epochs']} epochs of "
        f"{case['images']} JPEG files of {case['width']}x{case['height']}, {result['bytes_per_file'] / 1000:.0f} kB\n\n"
        + markdown_columns(("side", "s", "range", "images/s", "core s", "mocokit is faster"), rows)
        + f"\nmocokit's time: {shares}\n"
    )


def main() -> None:
    """Run the cases, and write one JSON file for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), help="replaces the case's precision, for a CPU without bf16"
    )
    parser.add_argument("--plain", action="store_true", help="run the plain PyTorch loop too")
    parser.add_argument("--tiny", action="store_true", help="run for seconds instead of minutes, and write no results")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder for images and runs")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    measuring.use_cores(args.cores)
    work = args.work.absolute()
    for asked in args.case:
        case = shrink(CASES[asked]) if args.tiny else CASES[asked]
        precision = args.precision or case.precision
        name = asked if precision == case.precision else f"{asked}_{precision}"
        case = replace(case, precision=precision)
        data = make_images(case, work)
        sides = measure(case, data, work, repeats=1 if args.tiny else args.repeats, plain=args.plain)
        result = summarise(case, data, sides)
        if not args.tiny:
            measuring.save_result(args.results / f"end_to_end_{name}.json", result)
        print("\n" + report(name, result), flush=True)


if __name__ == "__main__":
    main()
