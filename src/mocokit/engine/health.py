"""Tell in plain words that a run is not learning, from its metrics, its gradients and its weights.

Warnings of settings, before a run starts, are the method's own: `MethodSpec.warnings`.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mocokit.distributed.fsdp import local_part

MAX_BN_LEAK = 0.1
"""Largest `bn_leak` (a cosine) that passes for noise; healthy runs on the embedded sample stay within 0.03."""

LEAK_AFTER_STEPS = 200
"""First step at which the leak is looked for. Before, the encoders change so fast that keys of neighbouring batches
differ for that reason too, not only because their images differ."""

MAX_SKIPPED_IN_A_ROW = 40
"""Skipped steps in a row, under fp16, after which the run stops. Each one halves the loss scale, from 65,536 = 2^16 at
the start. 40 halvings bring it to 2^-24, the smallest number of float16: no smaller scale can help."""

OFTEN_SKIPPED = 0.1
"""Share of skipped steps between two log lines that is worth a warning. A healthy scaler skips one step in 2,000."""


def warnings_of_metrics(metrics: Mapping[str, float], *, step: int, num_steps: int = 0) -> list[str]:
    """Return warnings about the metrics of a log line.

    Args:
        metrics: The line's values.
        step: Steps done before the line.
        num_steps: Steps since the line before.

    """
    lines = []
    if step >= LEAK_AFTER_STEPS and metrics.get("bn_leak", 0.0) > MAX_BN_LEAK:
        lines.append(
            f"BatchNorm leak: queries are {metrics['bn_leak']:.2f} nearer to the keys of other images in their own "
            "BatchNorm group than to those of other batches; use method.bn_groups of 2 or more with method.shuffle on"
        )
    skipped = metrics.get("skipped_steps", 0.0)
    # After as many steps as a healthy scaler may need to find its first scale.
    if step - num_steps >= MAX_SKIPPED_IN_A_ROW and skipped > max(1.0, OFTEN_SKIPPED * num_steps):
        lines.append(
            f"skipped steps: {skipped:.0f} of the last {num_steps} steps had a gradient that float16 can't hold, and "
            "trained nothing; use run.precision=bf16 or fp32"
        )
    return lines


class NonFiniteLossError(ArithmeticError):
    """The loss, a gradient or a weight became NaN or infinite; the message says at which step and what to try."""

    def __init__(self, step: int, last_good: str, problem: str = "loss or gradient") -> None:
        super().__init__(
            f"{problem} is not finite at step {step}; {last_good}. Try a lower optim.lr, "
            "optim.warmup_epochs=1, or run.precision=fp32 if it was fp16"
        )


class SkippedStepsError(NonFiniteLossError):
    """Under fp16, no loss scale made the gradient finite; the message says what to try."""

    def __init__(self, step: int, skipped: int, last_good: str) -> None:
        ArithmeticError.__init__(
            self,
            f"{skipped} steps in a row, up to step {step}, trained nothing: their gradient is NaN or infinite, at "
            f"whatever loss scale; {last_good}. Use run.precision=bf16 or fp32; if that stops too, a lower optim.lr",
        )


def is_finite(numbers: Tensor) -> Tensor:
    """Return a scalar that is True if no number is NaN or infinite; there must be one at least.

    The smallest and the largest tell: both are NaN if one is. It needs no copy, unlike isfinite().
    """
    return torch.isfinite(torch.stack(torch.aminmax(numbers))).all()


class StateWatch:
    """Looks for NaN and infinite numbers in what a run learns: weights, statistics, queue and optimizer state.

    Tensors that have such numbers at the start are left out: a backbone may hold a mask of -inf.

    Args:
        method: The method.
        optimizer: Its optimizer.

    """

    def __init__(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._method = method
        self._optimizer = optimizer
        self._from_the_start = frozenset(self._bad_names())

    def find(self) -> str | None:
        """Return the name of a tensor of this rank that became NaN or infinite, or None. Waits for the device."""
        return next((name for name in self._bad_names() if name not in self._from_the_start), None)

    def _bad_names(self) -> list[str]:
        named = [(name, part) for name, part in self._tensors() if part.is_floating_point() and part.numel()]
        if not named:
            return []
        flags = [is_finite(part.detach()) for _, part in named]
        finite = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
        return [name for (name, _), good in zip(named, finite, strict=True) if not good]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self._method.state_dict().items():
            if isinstance(value, Tensor):
                yield name, local_part(value)
        for number, values in enumerate(self._optimizer.state.values()):
            for name, value in values.items():
                if isinstance(value, Tensor):
                    yield f"the optimizer's {name} of parameter {number}", local_part(value)
