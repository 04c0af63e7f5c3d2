"""Metrics of a run: summed on the device, and read back only when they are logged."""

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path

import torch
from torch import Tensor

from mocokit import distributed
from mocokit.engine.device import sum_type
from mocokit.engine.metrics_lines import repair


class MeterBoard:
    """Means of per-row metrics between two log lines, over all ranks.

    Args:
        device: Device of the sums. Adding to them never waits for the device.
        may_skip: True under fp16: a step whose gradient alone is not finite is skipped and counted, and only many in a
            row are an error. False: the first one is.

    """

    def __init__(self, device: torch.device, *, may_skip: bool = False) -> None:
        self.device = device
        self.may_skip = may_skip
        self._sum_type = sum_type(device)
        self.first_bad_step = torch.full((), -1, dtype=torch.long, device=device)
        self._sums: dict[str, Tensor] = {}
        self._num_rows: dict[str, int] = {}
        self._num_steps = 0
        self._skipped = torch.zeros((), dtype=torch.long, device=device)
        self._in_a_row = torch.zeros((), dtype=torch.long, device=device)
        self._most_in_a_row = torch.zeros((), dtype=torch.long, device=device)

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
            total = values.sum(dtype=self._sum_type)  # scalar; stays on the device
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._num_rows[name] = self._num_rows.get(name, 0) + len(values)
        self._num_steps += 1
        good = torch.isfinite(rows["loss"]).all()
        if self.may_skip:
            self._skipped = self._skipped + (~finite).long()
            self._in_a_row = torch.where(finite, 0, self._in_a_row + 1)
            self._most_in_a_row = torch.maximum(self._most_in_a_row, self._in_a_row)
        else:
            good = good & finite
        self.first_bad_step = torch.where((self.first_bad_step < 0) & ~good, step, self.first_bad_step)

    def bad_step(self) -> int | None:
        """Return the first step with a NaN or infinite loss or gradient on any rank, or None.

        A collective that waits for the device.
        """
        sentinel = 2**62  # no bad step here; greater than any step
        own = int(self.first_bad_step)
        bad = -distributed.max_over_ranks(-own if own >= 0 else -sentinel)  # the minimum over ranks
        return None if bad == sentinel else bad

    def most_skipped_in_a_row(self) -> int:
        """Return the longest row of skipped steps so far; the same on all ranks. Waits for the device."""
        return int(self._most_in_a_row)

    def means(self) -> dict[str, float]:
        """Return the mean of each metric since the last call, over the rows of all ranks that have it.

        With `may_skip` also `skipped_steps`, the number of steps since the last call that changed no weight.

        A collective that waits for the device.
        """
        names = sorted(self._sums)
        counts = torch.tensor([self._num_rows[name] for name in names], dtype=self._sum_type, device=self.device)
        sums = torch.stack([self._sums[name] for name in names])
        totals, num_rows = distributed.sum_over_ranks(torch.stack([sums, counts])).tolist()  # (2, metrics)
        means = {name: total / count for name, total, count in zip(names, totals, num_rows, strict=True)}
        if self.may_skip:
            means["skipped_steps"] = float(self._skipped)
        self._sums.clear()
        self._num_rows.clear()
        self._num_steps = 0
        self._skipped.zero_()
        return means

    @property
    def num_steps(self) -> int:
        """Return the number of steps since the last call of `means`."""
        return self._num_steps


class StepClock:
    """Throughput of all ranks, and the share of time spent waiting for data, between two log lines."""

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
        """Count this rank's images of one optimizer step; ranks may hold different numbers."""
        self._num_images += num_images

    def read(self) -> dict[str, float]:
        """Return images per second over all ranks, and the share of time (0..1) spent waiting for data.

        The rank that waits longest counts: the others wait for it, in collectives. Starts a new interval; a collective.
        """
        elapsed = time.perf_counter() - self._start
        num_images = int(distributed.sum_over_ranks(torch.tensor(self._num_images)))
        waited_s = distributed.max_over_ranks(round(1e6 * self._waited_s)) / 1e6
        self.restart()
        return {"images_per_s": num_images / elapsed, "data_wait_share": min(1.0, waited_s / elapsed)}


class MetricsLog:
    """Writer of `metrics.jsonl` and TensorBoard events, on the main rank only.

    Args:
        folder: The run folder.
        from_step: Step at which the run resumes, 0 for a new run. Lines of later steps are dropped: a run that was cut
            off wrote them after its last checkpoint.

    Raises:
        OSError: The file can't be read or written.

    """

    def __init__(self, folder: Path, *, from_step: int) -> None:
        self._file: RawIOBase | None = None
        self.latest: dict[str, float] = {}
        """Newest value of each metric of the run so far; empty on the other ranks."""
        self.is_evaluated = False
        """True if there is a line of an evaluation at `from_step`."""
        self.problems: list[str] = []
        """Sentences about lines of the file that are damaged."""
        if not distributed.is_main():
            return
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        lines, self.problems = repair(self._path, from_step=from_step)
        self.latest = {name: value for line in lines for name, value in line.values.items()}
        self.is_evaluated = any(line.kind == (from_step, False) for line in lines)
        self._file = self._path.open("ab", buffering=0)  # unbuffered: `close` has nothing to write, so it can't fail
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1 if from_step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line with the metrics after `step` steps; NaN and infinite values become null, as JSON has neither.

        Raises:
            OSError: The disk is full or gone; the message says what to do.

        """
        if self._file is None:
            return
        rounded = {n: float(f"{value:.12g}") if math.isfinite(value) else None for n, value in values.items()}
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
