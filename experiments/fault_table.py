"""docs/reliability.md out of experiments/results/faults.json."""

from pathlib import Path
from typing import Any

TEXT = """\
# Reliability, measured

Written by `make faults` (experiments/faults.py), which breaks real runs and compares each with one that nothing
happened to: {steps} steps of a small ResNet on real photographs, on
{machine}.
Lost: bits of the final weights, optimizer and queue that differ, and images counted twice or not at all. Detection:
from the fault until the run has ended with a message (or a second process was refused). Recovery: from
`mocokit resume` until the first step past where the run was hit, most of which is the start of Python and of the
ranks; the longest of all times.

{table}
"""

HEADER = ("fault", "how injected", "times", "lost", "detection", "recovery", "what was said")


def write_document(path: Path, result: dict[str, Any]) -> None:
    """Write the document with a row for each fault."""
    rows = [HEADER, *(_cells(name, row) for name, row in result["faults"].items())]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    table = "\n".join([lines[0], "|" + "---|" * len(HEADER), *lines[1:]])
    steps = sorted({row["steps"] for row in result["faults"].values() if "steps" in row})
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    text = TEXT.format(steps=" or ".join(map(str, steps)), machine=machine, table=table)
    path.write_text(text, encoding="utf-8")


def _cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    fault = name.replace("_", " ")
    if "not_run" in row:
        return (fault, row["how"], "not run", "", "", "", row["not_run"])
    lost = [f"{row[key]:,} {key.replace('_', ' ')}" for key in ("images_miscounted", "bits_differing") if key in row]
    seconds = (f"{row[key]:.1f} s" if key in row else "" for key in ("detection_s", "recovery_s"))
    return (fault, row["how"], str(row["times"]), ", ".join(lost), *seconds, row["said"].replace("|", "/"))
