"""docs/reliability.md out of experiments/results/faults.json, soak.json and those of hours before (soak_*.json)."""

import json
from pathlib import Path
from typing import Any

from mocokit.report.text_tables import markdown_columns

FAILED = "FAILED"
"""What the row of a fault says first that a run did not survive as it should."""

TEXT = """\
# Reliability, measured

`make faults` (experiments/faults.py) breaks real training runs of a small ResNet on real photographs, and compares each
with an undisturbed run of as many steps. The columns:

- **times**: how often the fault was injected. The times below are the longest of these.
- **lost**: images counted twice or not at all, and bits that differ in the final weights, optimizer state and queue.
- **detection**: from the fault until the run has ended with a message, or a second process was refused.
- **recovery**: from `mocokit resume` until the first step past the one where the fault hit. Most of it is the start of
  Python and of the ranks.
- **load**: processes that wanted a core before the row was measured, beside the run itself. A busy machine makes all
  times longer.

{table}
{machines}
"""

HEADER = ("fault", "how injected", "times", "steps", "lost", "detection", "recovery", "load", "what was said")
WORDS = ("how injected", "lost", "what was said")

SOAK = """
## {minutes:g} minutes without a fault

`python experiments/soak.py --minutes {minutes:g}`: two ranks trained {steps:,} steps, with {saves:,} checkpoints and
{evaluations:,} kNN evaluations between them. Each rank was sampled {samples} times from /proc. The first sixth of the
time is left out as warm-up ({steps_after_warm_up:,} steps remain). Slopes are least-squares fits, +- two standard
errors. Each evaluation and each save takes and frees so much memory that the slope of an hour can't show a small leak.
But leaked memory is never freed, so the table compares minima: a row is flat if the minimum of the second half is not
above that of the first half. Memory may rise by 5 MB an hour.

{table}
{medians}{machines}
"""

SOAK_HEADER = ("rank", "what", "minimum of first half", "minimum of second half", "slope an hour", "flat")


def write_document(path: Path, faults: Path) -> None:
    """Write the document: a row for each fault of the file `faults`, and what the soaks beside it hold."""
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
    """Of the memory in both halves, which a single low sample does not move; nothing for soaks from before."""
    memory = {rank: lines["memory_mb"] for rank, lines in ranks.items() if "median_of_first_half" in lines["memory_mb"]}
    halves = (
        f"{rank} {line['median_of_first_half']:,.1f} and {line['median_of_second_half']:,.1f} MB"
        for rank, line in memory.items()
    )
    return f"Median memory in the first and in the second half: {', '.join(halves)}.\n\n" if memory else ""


def _machines(machines: list[dict[str, Any]]) -> str:
    """Each machine once, with the commits measured on it."""
    commits: dict[str, list[str]] = {}
    for machine in machines:
        about = ", ".join(f"{name} {value}" for name, value in machine.items() if name != "commit")
        commits.setdefault(about, []).append(machine["commit"])
    return "\n".join(f"Measured at {', '.join(dict.fromkeys(found))} on: {about}." for about, found in commits.items())
