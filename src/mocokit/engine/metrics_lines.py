"""Read `metrics.jsonl` as a crash, a full disk or an editor can leave it: keep each good line, set the rest aside."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mocokit.engine.checkpoint import flush_to_disk, write_atomically

START_OF_LINE = b'{"step"'
"""First bytes of each line. After a crash a new line can follow a cut one without a line break between them."""


@dataclass(frozen=True, kw_only=True)
class MetricsLine:
    """A line of `metrics.jsonl`."""

    step: int
    """Optimizer steps done before it."""
    values: dict[str, float]
    """All other entries; NaN for a null."""
    raw: bytes
    """Its bytes, without the line break."""

    @property
    def kind(self) -> tuple[int, bool]:
        """Return what there can be one line of: the step, and True for training metrics, False for an evaluation."""
        return self.step, "loss" in self.values


def parse_line(raw: bytes) -> MetricsLine | None:
    """Return the line, or None if it is damaged."""
    try:
        values = json.loads(raw.decode("utf-8"))
        step = values.pop("step")
        numbers = {str(name): float("nan") if value is None else float(value) for name, value in values.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # no JSON, no object, no number
        return None
    is_step = isinstance(step, int) and not isinstance(step, bool) and step >= 0
    return MetricsLine(step=step, values=numbers, raw=raw) if is_step else None


def read_lines(content: bytes) -> tuple[list[MetricsLine], list[bytes]]:
    """Return the good lines of a file, and the bytes of the lines that are damaged, cut, or written twice.

    A good line that follows a cut one, or NUL bytes (as some file systems leave after a power failure), is kept. Of
    several lines of one kind the last one is.
    """
    good: list[MetricsLine] = []
    damaged: list[bytes] = []
    for raw in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        text = raw.strip(b"\r \t")
        if not text:
            continue
        line = parse_line(text)
        if line is None:
            damaged.append(raw)
            line = parse_line(text[max(0, text.rfind(START_OF_LINE)) :].strip(b"\0 "))
        if line is not None:
            good.append(line)
    newest = {line.kind: number for number, line in enumerate(good)}
    damaged += [line.raw for number, line in enumerate(good) if newest[line.kind] != number]
    return [line for number, line in enumerate(good) if newest[line.kind] == number], damaged


def repair(path: Path, *, from_step: int) -> tuple[list[MetricsLine], list[str]]:
    """Leave in the file its good lines up to `from_step`; return them, and what a user should know.

    Lines of later steps are dropped: the run was cut off after them, and does those steps again. Damaged lines move to
    a file of their own beside it. After a crash at any moment, the file is either as it was or as it should be.
    """
    content = path.read_bytes() if path.exists() else b""
    lines, damaged = read_lines(content)
    kept = [line for line in lines if line.step <= from_step]
    told = []
    if damaged:
        aside = path.with_name(path.name + ".damaged")
        with aside.open("ab") as file:
            file.write(_joined(damaged))
        flush_to_disk(aside)
        told.append(f"{path.name}: {len(damaged)} damaged or repeated lines moved to {aside.name}")
    wanted = _joined(line.raw for line in kept)
    if wanted != content:
        write_atomically(path, lambda temporary: temporary.write_bytes(wanted))
    return kept, told


def _joined(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)
