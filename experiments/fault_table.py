"""Write docs/reliability.md from experiments/results/faults.json, soak.json and earlier soaks (soak_*.json)."""

import json
from pathlib import Path
from typing import Any

from mocokit.report.text_tables import markdown_columns

FAILED = "FAILED"
"""Start of the row of a fault that a run did not survive as it should."""

TEXT = """\
# Reliability, measured

Written by `make faults` (experiments/faults.py), which breaks real runs of a small ResNet on real photographs and
compares each with an undisturbed run of as many steps.
Lost: bits of the final weights, optimizer and queue that differ, and images counted twice or not at all. Detection:
time from the fault until the run has ended with a message (or a second process was refused). Recovery: time from
`mocokit resume` until the first step beyond the fault, most of which is the start of Python and of the ranks; the
longest of all times. Load: processes that wanted a core when the row was begun, beside the run. On a busy machine all
times are longer.

Not measured here, but tested with real processes: `pretrain ... --exist resume` starts a run, goes on with it, or
finds it done. With it, `torchrun --max-restarts=1` survives a rank that is killed once, bit by bit
(tests/run/test_existing.py), and the batch script of `mocokit slurm` is one command. A check that fails before the
first step leaves no run folder (tests/run/test_half_made.py). If the images moved, `mocokit resume RUN --data
NEW_PLACE` goes on there.

{table}
{machines}
"""

HEADER = ("fault", "how injected", "times", "steps", "lost", "detection", "recovery", "load", "what was said")
WORDS = ("how injected", "lost", "what was said")

SOAK = """
## {minutes:g} minutes without a fault

`python experiments/soak.py --minutes {minutes:g}`: two ranks trained for {steps:,} steps, with {saves:,} saves and
{evaluations:,} kNN evaluations between them. There are {samples} samples of each rank from /proc; those of the first
sixth of the time are left out ({steps_after_warm_up:,} steps remain). Slopes are least-squares fits, +- two standard
errors. Each evaluation and save moves memory up and down by more than a line through an hour can resolve. But a leak
never gives memory back. So "flat" means: the least in the second half is not above the least in the first half (memory:
rises by less than 5 MB an hour).

{table}
{medians}{machines}
"""

SOAK_HEADER = ("rank", "what", "minimum of first half", "minimum of second half", "slope an hour", "flat")


def write_document(path: Path, faults: Path) -> None:
    """Write the document: a row for each fault in the file `faults`, and a section for each soak file beside it."""
    rows = json.loads(faults.read_text(encoding="utf-8"))["faults"] if faults.exists() else {}
    measured = [row["machine"] for row in rows.values() if "machine" in row]
    cells = [_cells(name, row) for name, row in rows.items()]
    text = TEXT.format(table=markdown_columns(HEADER, cells, words=WORDS), machines=_machines(measured))
    for soak in sorted(faults.parent.glob("soak*.json")):
        text += _soak(json.loads(soak.read_text(encoding="utf-8")))
    path.write_text(text, encoding="utf-8")


def _cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    fault = name.replace("_", " ")
    if "not_run" in row:
        return (fault, row["how"], "not run", *[""] * 5, row["not_run"])
    lost = [f"{row[key]:,} {key.replace('_', ' ')}" for key in ("images_miscounted", "bits_differing") if key in row]
    seconds = (f"{row[key]:.1f} s" if key in row else "" for key in ("detection_s", "recovery_s"))
    counts = (str(row.get(key, "")) for key in ("times", "steps"))
    load = str(row.get("load_before", "unknown"))
    return (fault, row["how"], *counts, ", ".join(lost), *seconds, load, row["said"].replace("|", "/"))


def _soak(result: dict[str, Any]) -> str:
    cells = [
        (
            rank,
            name.replace("_mb", ", MB"),
            f"{line['least_in_first_half']:,.0f}",
            f"{line['least_in_second_half']:,.0f}",
            f"{line['slope_per_hour']:+.2f} +- {2 * line['standard_error']:.2f}",
            "yes" if line["flat"] else "NO",
        )
        for rank, lines in result["ranks"].items()
        for name, line in lines.items()
    ]
    return SOAK.format(
        **result,
        table=markdown_columns(SOAK_HEADER, cells, words=("what",)),
        medians=_medians(result["ranks"]),
        machines=_machines([result["machine"]]),
    )


def _medians(ranks: dict[str, Any]) -> str:
    """Return the medians of memory in both halves, which one low sample does not move; "" if the soak has none."""
    memory = {rank: lines["memory_mb"] for rank, lines in ranks.items() if "median_of_first_half" in lines["memory_mb"]}
    halves = (
        f"{rank} {line['median_of_first_half']:,.1f} and {line['median_of_second_half']:,.1f} MB"
        for rank, line in memory.items()
    )
    return f"Median memory in the first and in the second half: {', '.join(halves)}.\n\n" if memory else ""


def _machines(machines: list[dict[str, Any]]) -> str:
    """Return a line for each machine, with the commits measured on it."""
    commits: dict[str, list[str]] = {}
    for machine in machines:
        about = ", ".join(f"{name} {value}" for name, value in machine.items() if name != "commit")
        commits.setdefault(about, []).append(machine["commit"])
    return "\n".join(f"Measured at {', '.join(dict.fromkeys(found))} on: {about}." for about, found in commits.items())
