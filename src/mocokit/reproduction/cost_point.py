"""One point of the cost table, measured in a process of its own, since a process's peak never falls.

python -m mocokit.reproduction.cost_point '{"way": "moco", "batch": 256, "negatives": 65536}'
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
from mocokit.engine.precision import pick_device
from mocokit.methods.groups import GroupLayout
from mocokit.nets.pixels import PixelNormalize
from mocokit.presets import get_preset
from mocokit.settings import replace_settings

GROUP_ROWS = 32
"""Images that share BatchNorm statistics: a GPU's part of the batch in the papers."""

WAYS = ("moco", "end-to-end", "end-to-end, cached")
"""cached: two BatchNorm groups at a time, with the gradient cache; loss and gradient stay those of the whole batch."""


@dataclass(frozen=True, kw_only=True)
class CostPoint:
    """What to measure."""

    way: str
    batch: int
    negatives: int
    """K of the queue; end-to-end: all that the batch offers."""
    arch: str = "resnet10_w32"
    image_size: int = 48
    steps: int = 3
    """Timed steps, after one that isn't."""
    device: str = "cpu"

    @property
    def config(self) -> Config:
        """The run that the step is of."""
        groups, moco = self.batch // GROUP_ROWS, self.way == "moco"
        settings: dict[str, object] = {
            "data.image_size": self.image_size, "data.global_batch_size": self.batch, "model.arch": self.arch,
            "method.bn_groups": groups, "method.micro_groups": min(2, groups) if "cached" in self.way else 0,
        }  # fmt: skip
        settings |= {"method.queue_size": self.negatives} if moco else {}
        return replace_settings(get_preset("moco-v1" if moco else "end-to-end"), settings)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What was measured."""

    peak_megabytes: float
    """Weights, momenta, queue and all that a step needs; not Python and the libraries. On CUDA, allocated memory."""
    step_s: float
    """Median."""
    fastest_s: float
    slowest_s: float


def measure_here(point: CostPoint) -> Cost:
    """Train some steps on random pixels in this process."""
    device = pick_device(point.device, local_rank=0)
    torch.nn.Conv2d(3, 3, 3).to(device)(torch.zeros(1, 3, 8, 8, device=device)).sum().backward()  # libraries load
    before, config = _reset_peak(device), point.config
    layout = GroupLayout(bn_groups=config.method.bn_groups, micro_groups=config.method.micro_groups)
    pixels = PixelNormalize(config.data.mean, config.data.std, channels_last=True)
    method = build_method(config, layout=layout, pixels=pixels, num_images=point.batch, total_steps=100).to(device)
    optimizer = build_optimizer(
        method, name="sgd", lr=1e-3, sgd_momentum=0.9, weight_decay=1e-4, trust_coefficient=1e-3
    )  # fmt: skip
    _reset_peak(device)  # what drawing the first queue took is not a step's
    seconds = [_step(method, optimizer, point, number, device) for number in range(1 + point.steps)][1:]
    return Cost(
        peak_megabytes=_peak(device) - before, step_s=statistics.median(seconds), fastest_s=min(seconds),
        slowest_s=max(seconds),
    )  # fmt: skip


def _step(
    method: AnyMethod, optimizer: torch.optim.Optimizer, point: CostPoint, number: int, device: torch.device
) -> float:
    """Seconds of one optimizer step, the drawing of its pixels not counted."""
    shape = (point.batch, 3, point.image_size, point.image_size)
    query, key = (torch.randint(0, 256, shape, dtype=torch.uint8, device=device) for _ in "qk")
    _wait(device)
    start = time.perf_counter()
    method.prepare(query, key, torch.arange(point.batch, device=device), number)
    for loss in method.micro_losses():
        loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.remember()
    _wait(device)
    return time.perf_counter() - start


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


def measure(point: CostPoint) -> Cost:
    """The same in a fresh process.

    Raises:
        ValueError: It failed, for want of memory for example.

    """
    command = [sys.executable, "-m", "mocokit.reproduction.cost_point", json.dumps(asdict(point))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        raise ValueError(f"cost: {point.way} at batch {point.batch}, K {point.negatives}: {why}")
    return Cost(**json.loads(done.stdout))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(measure_here(CostPoint(**json.loads(sys.argv[1]))))) + "\n")
