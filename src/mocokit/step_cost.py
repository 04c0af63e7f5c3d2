"""What a training step costs on this machine, memory and time, measured in a process of its own, whose peak is its own.

python -m mocokit.step_cost < config.toml
"""

import contextlib
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mocokit.build_method import AnyMethod, build_method
from mocokit.config import Config
from mocokit.engine.optim import build_optimizer
from mocokit.engine.precision import Precision, pick_device
from mocokit.methods.groups import GroupLayout
from mocokit.nets.pixels import PixelNormalize
from mocokit.settings import from_toml, to_toml

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


def measure_step(config: Config, *, steps: int = 3) -> StepCost:
    """Train some steps of `config` on random pixels in a fresh process, after one that isn't timed.

    Raises:
        ValueError: It failed, for want of memory for example; the last line that it said.

    """
    command = [sys.executable, "-m", "mocokit.step_cost", str(steps)]
    done = subprocess.run(command, input=to_toml(config), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1])
    return StepCost(**json.loads(done.stdout))


def measure_here(config: Config, *, steps: int) -> StepCost:
    """The same in this process."""
    device = pick_device(config.run.device, local_rank=0)
    precision, batch = Precision(config.run.precision, device), config.data.global_batch_size
    torch.nn.Conv2d(3, 3, 3).to(device)(torch.zeros(1, 3, 8, 8, device=device)).sum().backward()  # libraries load
    before = _reset_peak(device)
    layout = GroupLayout(bn_groups=config.method.bn_groups, micro_groups=config.method.micro_groups)
    mean, std = (known or MEAN_STD for known in (config.data.mean, config.data.std))
    pixels = PixelNormalize(mean, std, channels_last=config.run.channels_last)
    method = build_method(config, layout=layout, pixels=pixels, num_images=max(batch, 10_000), total_steps=100)
    method = method.to(device=device, dtype=precision.dtype)
    optim = config.optim
    optimizer = build_optimizer(
        method, name=optim.name, lr=1e-3, sgd_momentum=optim.sgd_momentum, weight_decay=optim.weight_decay,
        trust_coefficient=optim.trust_coefficient,
    )  # fmt: skip
    _reset_peak(device)  # what drawing the first queue took is not a step's
    times = [_step(config, method, optimizer, precision, number, device) for number in range(1 + steps)][1:]
    wall, cpu = zip(*times, strict=True)
    return StepCost(
        peak_megabytes=_peak(device) - before, step_s=statistics.median(wall), fastest_s=min(wall),
        slowest_s=max(wall), cpu_s=statistics.median(cpu),
    )  # fmt: skip


def _step(
    config: Config, method: AnyMethod, optimizer: torch.optim.Optimizer, precision: Precision, number: int,
    device: torch.device,
) -> tuple[float, float]:  # fmt: skip
    """Seconds of one optimizer step, and of processors' time; the drawing of its pixels not counted."""
    batch, side = config.data.global_batch_size, config.data.image_size
    query, key = (torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device) for _ in "qk")
    _wait(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    with precision.autocast():
        method.prepare(query, key, torch.arange(batch, device=device), number)
    for loss in precision.forward_each(method.micro_losses()):
        precision.scaler.scale(loss).backward()
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    method.remember()
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
