"""Warn in plain words when the metrics of a run show that it is not learning.

Warnings of settings, before a run starts, are the method's own: `MethodSpec.warnings`.
"""

from collections.abc import Mapping

MAX_BN_LEAK = 0.1
"""Largest `bn_leak` (a cosine) that passes for noise; healthy runs on the embedded sample stay within 0.03."""

LEAK_AFTER_STEPS = 200
"""First step at which the leak is looked for. Before, the encoders change so fast that keys of neighbouring batches
differ for that reason too, not only because their images differ."""


def warnings_of_metrics(metrics: Mapping[str, float], *, step: int) -> list[str]:
    """Return warnings about the metrics of a log line, which is written after `step` steps."""
    lines = []
    if step >= LEAK_AFTER_STEPS and metrics.get("bn_leak", 0.0) > MAX_BN_LEAK:
        lines.append(
            f"BatchNorm leak: queries are {metrics['bn_leak']:.2f} nearer to the keys of other images in their own "
            "BatchNorm group than to those of other batches; use method.bn_groups of 2 or more with method.shuffle on"
        )
    return lines


class NonFiniteLossError(ArithmeticError):
    """The loss or a gradient became NaN or infinite; the message says at which step and what to try."""

    def __init__(self, step: int, last_good: str) -> None:
        super().__init__(
            f"loss or gradient is not finite at step {step}; {last_good}. Try a lower optim.lr, "
            "optim.warmup_epochs=1, or run.precision=fp32 if it was fp16"
        )
