"""Measure the memory and the time of a training step on this machine.

Each measurement runs in a process of its own, so that the peak of memory is the step's alone:
python -m mocokit.plan.measure_step STEPS < config.toml
"""

import contextlib
import json
import os
import re
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
from mocokit.engine.device import pick_device
from mocokit.engine.precision import Precision
from mocokit.engine.train import train_step
from mocokit.run.build import build_trained

MEAN_STD = (0.5, 0.5, 0.5)
"""Mean and standard deviation of each channel, for configs that would measure them on images."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Measured memory and time of a step."""

    peak_megabytes: float
    """Peak of weights, momenta, queue and activations, without Python and the libraries; on CUDA, allocated memory."""
    step_s: float
    """Median time from views on the device to updated weights."""
    fastest_s: float
    slowest_s: float
    cpu_s: float
    """Median CPU time of a step, which other work on the machine disturbs less."""


def measure_step(config: Config, *, steps: int = 3, without_holes: bool = False) -> StepCost:
    """Measure training steps of `config` on random pixels in a fresh process, after one step that isn't timed.

    Args:
        config: What to train.
        steps: Timed steps.
        without_holes: On a CPU, give freed memory back to the system at once, so that the peak is that of memory in
            use. Else glibc keeps freed memory, half as much again in small networks. The steps take longer.

    Raises:
        ValueError: The process failed, for example for lack of memory; the message is its last line of output.

    """
    command = [sys.executable, "-m", "mocokit.plan.measure_step", str(steps)]
    environment = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "262144"} if without_holes else {})}
    done = subprocess.run(command, input=to_toml(config), capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1])
    return StepCost(**json.loads(done.stdout))


def measure_here(config: Config, *, steps: int) -> StepCost:
    """Measure in this process; see `measure_step`."""
    device = pick_device(config.run.device, local_rank=0)
    precision = Precision(config.run.precision, device)
    batch = config.data.global_batch_size
    torch.nn.Conv2d(3, 3, 3).to(device)(torch.zeros(1, 3, 8, 8, device=device)).sum().backward()  # loads the libraries
    before = _reset_peak(device)
    mean, std = (known or MEAN_STD for known in (config.data.mean, config.data.std))
    method, optimizer = build_trained(
        config, precision, device, mean=mean, std=std, num_images=max(batch, 10_000), total_steps=100
    )
    _reset_peak(device)  # building the queue takes temporary memory that no step needs
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
    """Return the wall and CPU seconds of one optimizer step; drawing its random pixels is not counted."""
    size = config.data.global_batch_size
    side = config.data.image_size
    crops = config.augment.local_crops
    crop_side = config.augment.local_size

    def pixels(*shape: int) -> Tensor:
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
    """Reset the peak to the memory held now, and return that in megabytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):  # only Linux can reset it; elsewhere the old peak stays
        Path("/proc/self/clear_refs").write_text("5")
    return _peak(device)


def _peak(device: torch.device) -> float:
    """Return the peak in megabytes: on Linux VmHWM, because ru_maxrss starts from the peak of the parent process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii")) if status.exists() else None
    if found:
        return int(found[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows: not measured
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    measured = measure_here(from_toml(sys.stdin.read()), steps=int(sys.argv[1]))
    sys.stdout.write(json.dumps(asdict(measured)) + "\n")
