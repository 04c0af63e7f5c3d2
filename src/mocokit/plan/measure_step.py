"""What a training step costs on this machine, memory and time, measured in a process of its own, whose peak is its own.

python -m mocokit.plan.measure_step < config.toml
"""

import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mocokit.config.schema import Config
from mocokit.config.toml import from_toml, to_toml
from mocokit.data.batch import ViewBatch
from mocokit.distributed.gradients import gradient_sum
from mocokit.engine.precision import Precision, pick_device
from mocokit.engine.train import train_step
from mocokit.run.build import build_trained

MEAN_STD = (0.5, 0.5, 0.5)
"""Where the config measures them on images."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What was measured."""

    peak_megabytes: float
    """Weights, momenta, queue and all that a step needs; not Python and the libraries. On CUDA, allocated memory."""
    step_s: float
    """Median, from views that are there to updated weights."""
    fastest_s: float
    slowest_s: float
    cpu_s: float
    """Median of the processors' time, which other work on the machine disturbs less."""


def measure_step(config: Config, *, steps: int = 3, without_holes: bool = False) -> StepCost:
    """Train some steps of `config` on random pixels in a fresh process, after one that isn't timed.

    Args:
        config: What to train.
        steps: Timed steps.
        without_holes: On a CPU, give freed memory back at once, so that the peak is of what is in use and not of what
            glibc keeps between (half as much again, in small networks); the steps take longer for it.

    Raises:
        ValueError: It failed, for want of memory for example; the last line that it said.

    """
    command = [sys.executable, "-m", "mocokit.plan.measure_step", str(steps)]
    environment = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "262144"} if without_holes else {})}
    done = subprocess.run(command, input=to_toml(config), capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1])
    return StepCost(**json.loads(done.stdout))


def measure_here(config: Config, *, steps: int) -> StepCost:
    """The same in this process."""
    device = pick_device(config.run.device, local_rank=0)
    precision = Precision(config.run.precision, device)
    batch = config.data.global_batch_size
    torch.nn.Conv2d(3, 3, 3).to(device)(torch.zeros(1, 3, 8, 8, device=device)).sum().backward()  # libraries load
    before = _reset_peak(device)
    mean, std = (known or MEAN_STD for known in (config.data.mean, config.data.std))
    method, optimizer = build_trained(
        config, precision, device, mean=mean, std=std, num_images=max(batch, 10_000), total_steps=100
    )
    _reset_peak(device)  # what drawing the first queue took is not a step's
    step = partial(
        train_step,
        method,
        gradients=gradient_sum(method),
        optimizer=optimizer,
        precision=precision,
        clip_norm=config.optim.clip_norm,
    )
    times = [_time(step, config, number, device) for number in range(1 + steps)][1:]
    wall, cpu = zip(*times, strict=True)
    return StepCost(
        peak_megabytes=_peak(device) - before,
        step_s=statistics.median(wall),
        fastest_s=min(wall),
        slowest_s=max(wall),
        cpu_s=statistics.median(cpu),
    )


def _time(
    step: Callable[[ViewBatch, int], object], config: Config, number: int, device: torch.device
) -> tuple[float, float]:
    """Seconds of one optimizer step, and of processors' time; the drawing of its pixels not counted."""
    size = config.data.global_batch_size
    side = config.data.image_size
    crops = config.augment.local_crops
    crop_side = config.augment.local_size

    def pixels(*shape: int) -> Tensor:
        """Noise."""
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    batch = ViewBatch(
        query=pixels(size, 3, side, side),
        key=pixels(size, 3, side, side),
        image_ids=torch.arange(size, device=device),
        local=pixels(size, crops, 3, crop_side, crop_side) if crops else None,
    )
    _wait(device)
    start = time.perf_counter()
    cpu_start = time.process_time()
    step(batch, number)
    _wait(device)
    return time.perf_counter() - start, time.process_time() - cpu_start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> float:
    """Let the peak be what is held now; that in megabytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):  # Linux alone has it; elsewhere the peak so far is the floor
        Path("/proc/self/clear_refs").write_text("5")
    return _peak(device)


def _peak(device: torch.device) -> float:
    """Megabytes; of the process, Linux's VmHWM, which unlike ru_maxrss is not that of the process it came from."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii")) if status.exists() else None
    if found:
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    measured = measure_here(from_toml(sys.stdin.read()), steps=int(sys.argv[1]))
    sys.stdout.write(json.dumps(asdict(measured)) + "\n")
