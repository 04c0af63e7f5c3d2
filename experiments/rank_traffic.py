"""Run `mocokit` as one rank of torchrun and record the bytes of each step: python rank_traffic.py OUT pretrain ...

Every collective of torch.distributed that the package calls is counted with the bytes that this rank puts into it. The
loopback device, over which ranks of one machine talk, counts what all ranks really sent. That number is right only if
nothing else uses the device, that is, in a network namespace of its own.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mocokit.cli import main
from mocokit.engine.recorder import Recorder

Step = dict[str, int]


class Traffic:
    """Bytes of each step so far, by collective and element type."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._now: Step = {}
        self._wire = _loopback_bytes()

    def count(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call` with counting added: the bytes of its last tensor argument, which is the rank's input."""

        def counted(*arguments: Any, **settings: Any) -> Any:
            given = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
            key = f"{name} {str(given[-1].dtype).removeprefix('torch.')}" if given else name
            size = given[-1].numel() * given[-1].element_size() if given else 0
            self._now[key] = self._now.get(key, 0) + size
            return call(*arguments, **settings)

        return counted

    def end_step(self) -> None:
        """Close a step: the bytes counted since the last call are its bytes."""
        wire = _loopback_bytes()
        self.steps.append({**self._now, "wire of all ranks": wire - self._wire})
        self._now = {}
        self._wire = wire


def _loopback_bytes() -> int:
    """Return the bytes sent so far over the loopback device, headers included."""
    lines = Path("/proc/self/net/dev").read_text(encoding="utf-8").splitlines()
    loopback = next(line for line in lines if line.strip().startswith("lo:"))
    return int(loopback.split(":")[1].split()[8])


def run(out: Path, arguments: list[str]) -> int:
    """Run the command, write `out`/rank_N.json, and return the exit code."""
    traffic = Traffic()
    after_step = Recorder.after_step

    def ended(self: Recorder, step: int, *, lr: float, stop: bool) -> bool:
        stop = after_step(self, step, lr=lr, stop=stop)
        traffic.end_step()
        return stop

    Recorder.after_step = ended  # type: ignore[method-assign]
    for name in ("all_reduce", "all_gather", "all_to_all_single", "all_gather_object", "barrier"):
        setattr(dist, name, traffic.count(name, getattr(dist, name)))
    code = main(arguments)
    (out / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(traffic.steps), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
