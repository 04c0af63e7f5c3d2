"""What the loop of a CPU run gains from workers that take turns with the step, and from memory that is kept.

Each side is `mocokit pretrain` as it is but for one thing. Rounds are interleaved, every other one in the opposite
order. The seconds are the loop's, without start and end.

    python benchmarks/cpu_sharing.py --repeats 5
    python benchmarks/cpu_sharing.py --case r18_64 --side "as it is" "workers beside the step" --repeats 10
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
    "workers beside the step": "import mocokit.data.turns as turns; turns.PATIENCE_S = -1.0",
    "workers always in turns": "import mocokit.data.turns as turns; turns.PATIENCE_S = float('inf')",
    "freed memory given back": "import mocokit.run.pretrain as p; p.keep_freed_memory = lambda device: None",
}
"""What is done before the command."""

SHORT = {
    "r18_64": replace(CASES["r18_64"], precision="fp32", epochs=1),
    "r50_224": replace(CASES["r50_224"], precision="fp32", epochs=1, images=192),
    "small_32": replace(CASES["small_32"], epochs=8, images=2048),
}


def changed(command: Sequence[str], change: str) -> list[str]:
    """`python -m mocokit ...` with something done before it."""
    arguments = command[command.index("mocokit") + 1 :]
    return [sys.executable, "-c", f"{change}\nimport sys; from mocokit.cli import main; sys.exit(main())", *arguments]


def seconds_of(side: Side, *parts: str) -> list[float]:
    """What the parts of `end_to_end.shares_of` took, of each run."""
    runs = zip(side.seconds, side.shares, strict=True)
    return [wall_s * sum(shares[part] for part in parts) for wall_s, shares in runs]


def measure(case: Case, data: Path, work: Path, *, names: Sequence[str], repeats: int) -> dict[str, Any]:
    """Seconds of the loop and those of them spent waiting, for each side of `names`."""
    command = mocokit_command(case, data, work / "run")
    sides = [Side(name, changed(command, CHANGES[name]), work / "run") for name in names]
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
    """A row a side."""
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
    """Measure the cases, a JSON file for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=SHORT, nargs="+", default=list(SHORT))
    parser.add_argument("--side", choices=CHANGES, nargs="+", default=list(CHANGES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder for images and runs")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    measuring.use_cores(args.cores)
    work = args.work.absolute()
    for name in args.case:
        case = SHORT[name]
        result = measure(case, make_images(case, work), work, names=args.side, repeats=args.repeats)
        print("\n" + report(name, result), flush=True)
        measuring.save_result(args.results / f"cpu_sharing_{name}.json", result)


if __name__ == "__main__":
    main()
