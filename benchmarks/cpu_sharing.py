"""Measure what the loop of a CPU run gains because glibc keeps the memory that a step frees.

Both sides run `mocokit pretrain`; one of them gives freed memory back to the kernel. Rounds are interleaved, and every
other round runs in the opposite order. The times are those of the training loop, without start and end of the command.

    python benchmarks/cpu_sharing.py --repeats 5
    python benchmarks/cpu_sharing.py --case r18_64 --repeats 10
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import measuring
from end_to_end import CASES, HERE, Case, Side, make_images, mocokit_command

from mocokit.report.text_tables import markdown_columns

CHANGES = {
    "as it is": "",
    "freed memory given back": "import mocokit.run.pretrain as p; p.keep_freed_memory = lambda device: None",
}
"""Side -> Python code to run before the command."""

SHORT = {
    "r18_64": replace(CASES["r18_64"], precision="fp32", epochs=1),
    "r50_224": replace(CASES["r50_224"], precision="fp32", epochs=1, images=192),
    "small_32": replace(CASES["small_32"], epochs=8, images=2048),
}


def changed(command: Sequence[str], change: str) -> list[str]:
    """Return the command with Python code to run before it."""
    arguments = command[command.index("mocokit") + 1 :]
    return [sys.executable, "-c", f"{change}\nimport sys; from mocokit.cli import main; sys.exit(main())", *arguments]


def seconds_of(side: Side, *parts: str) -> list[float]:
    """Return the seconds of each run that the named parts of `end_to_end.shares_of` took."""
    runs = zip(side.seconds, side.shares, strict=True)
    return [wall_s * sum(shares[part] for part in parts) for wall_s, shares in runs]


def measure(case: Case, data: Path, work: Path, *, repeats: int) -> dict[str, Any]:
    """Return the seconds of the loop, and how many of them were spent waiting, for each side."""
    command = mocokit_command(case, data, work / "run")
    sides = [Side(name, changed(command, CHANGES[name]), work / "run") for name in CHANGES]
    for number in range(repeats):
        for side in sides if number % 2 == 0 else reversed(sides):
            side.run(case.batch)
    loops = {side.name: seconds_of(side, "waiting for data", "training") for side in sides}
    return {
        "case": asdict(case),
        "sides": {
            side.name: {
                "loop_s": loops[side.name],
                "waiting_s": seconds_of(side, "waiting for data"),
                "core_s": side.core_seconds,
                "first_is_faster": measuring.median_ratio(loops[side.name], loops[sides[0].name]),
            }
            for side in sides
        },
    }


def report(name: str, result: dict[str, Any]) -> str:
    """Return a table with one row per side."""
    rows = [
        (
            side,
            f"{statistics.median(row['loop_s']):.1f}",
            f"{statistics.median(row['waiting_s']):.1f}",
            f"{statistics.median(row['core_s']):.0f}",
            measuring.show_ratio(row["first_is_faster"]),
        )
        for side, row in result["sides"].items()
    ]
    return f"{name}\n\n" + markdown_columns(
        ("side", "loop, s", "waiting, s", "core s of all", "the first is faster"), rows
    )


def main() -> None:
    """Measure the cases and write a JSON file for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=SHORT, nargs="+", default=list(SHORT))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder for images and runs")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    measuring.use_cores(args.cores)
    work = args.work.absolute()
    for name in args.case:
        case = SHORT[name]
        result = measure(case, make_images(case, work), work, repeats=args.repeats)
        print("\n" + report(name, result), flush=True)
        measuring.save_result(args.results / f"cpu_sharing_{name}.json", result)


if __name__ == "__main__":
    main()
