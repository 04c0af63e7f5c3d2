"""Metrics of a run: summed on the device, and read back only when they are logged."""

import errno
import json
import os
import time
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path

import torch
from torch import Tensor

from mocokit import distributed


class MeterBoard:
    """Means of per-row metrics between two log lines, over all ranks.

    Args:
        device: Device of the sums. Adding to them never waits for the device.

    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first_bad_step = torch.full((), -1, dtype=torch.long, device=device)
        self._sums: dict[str, Tensor] = {}
        self._num_rows = 0

    def add(self, rows: Mapping[str, Tensor], *, step: int, finite: Tensor) -> None:
        """Add the metrics of one step's rows, and remember the first step with a NaN or infinite loss or gradient.

        Args:
            rows: (N,) values of each metric, one an image; `loss` at least. Entries with more than one number an image,
                (N, C) for example, are no metrics and are left out.
            step: The step.
            finite: Scalar on the device, True if the step's gradient was finite.

        """
        for name, values in rows.items():
            if values.ndim != 1:
                continue
            total = values.sum(dtype=torch.float64)  # scalar; stays on the device
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._num_rows += len(rows["loss"])
        bad = (self.first_bad_step < 0) & ~(torch.isfinite(rows["loss"]).all() & finite)
        self.first_bad_step = torch.where(bad, step, self.first_bad_step)

    def bad_step(self) -> int | None:
        """Return the first step with a NaN or infinite loss or gradient on any rank, or None.

        A collective that waits for the device.
        """
        sentinel = 2**62  # no bad step here; greater than any step
        own = int(self.first_bad_step)
        bad = -distributed.max_over_ranks(-own if own >= 0 else -sentinel)  # the minimum over ranks
        return None if bad == sentinel else bad

    def means(self) -> dict[str, float]:
        """Return the mean of each metric since the last call, over the rows of all ranks.

        A collective that waits for the device.
        """
        names = sorted(self._sums)
        num_rows_here = torch.tensor(self._num_rows, dtype=torch.float64, device=self.device)
        sums = torch.stack([*(self._sums[name] for name in names), num_rows_here])  # (metrics + 1,): one collective
        *totals, num_rows = distributed.sum_over_ranks(sums).tolist()
        self._sums.clear()
        self._num_rows = 0
        return {name: total / num_rows for name, total in zip(names, totals, strict=True)}


class StepClock:
    """Throughput, and the share of time spent waiting for data, between two log lines."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start a new interval."""
        self._start = time.perf_counter()
        self._waited_s = 0.0
        self._num_images = 0

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for a batch."""
        self._waited_s += seconds

    def trained(self, num_images: int) -> None:
        """Count images of one optimizer step."""
        self._num_images += num_images

    def read(self) -> dict[str, float]:
        """Return images per second and the share of time (0..1) spent waiting for data; start a new interval."""
        elapsed = time.perf_counter() - self._start
        values = {"images_per_s": self._num_images / elapsed, "data_wait_share": self._waited_s / elapsed}
        self.restart()
        return values


class MetricsLog:
    """Writer of `metrics.jsonl` and TensorBoard events, on the main rank only.

    Args:
        folder: The run folder.
        from_step: Step at which the run resumes, 0 for a new run. Lines of later steps are dropped: a run that was cut
            off wrote them after its last checkpoint.

    """

    def __init__(self, folder: Path, *, from_step: int) -> None:
        self._file: RawIOBase | None = None
        if not distributed.is_main():
            return
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        kept = [line for line in _whole_lines(self._path) if json.loads(line)["step"] <= from_step]
        self._path.write_text("".join(kept), encoding="utf-8")
        self._file = self._path.open("ab", buffering=0)  # unbuffered: `close` has nothing to write, so it can't fail
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1 if from_step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line with the metrics after `step` steps.

        Raises:
            OSError: The disk is full or gone; the message says what to do.

        """
        if self._file is None:
            return
        rounded = {name: float(f"{value:.12g}") for name, value in values.items()}
        try:
            line = json.dumps({"step": step, **rounded}).encode() + b"\n"
            if self._file.write(line) != len(line):  # a disk that becomes full takes part of the line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            self._file = None
            message = f"metrics not written ({error.strerror}); make room, then resume"
            raise OSError(error.errno, message, str(self._path)) from error

    def close(self) -> None:
        """Close both files."""
        if self._file is not None:
            self._file.close()
            self._board.close()


def _whole_lines(path: Path) -> list[str]:
    """Return the complete lines of a file, if it exists; a crash can cut the last one."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("}\n")]
