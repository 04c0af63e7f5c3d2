"""One point of the cost table: a mechanism at a batch and a number of negatives."""

from dataclasses import dataclass

from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.plan.measure_step import StepCost, measure_step

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
        groups = self.batch // GROUP_ROWS
        moco = self.way == "moco"
        settings: dict[str, object] = {
            "data.image_size": self.image_size,
            "data.global_batch_size": self.batch,
            "model.arch": self.arch,
            "method.bn_groups": groups,
            "method.micro_groups": min(2, groups) if "cached" in self.way else 0,
            "run.device": self.device,
        }
        settings |= {"method.queue_size": self.negatives} if moco else {}
        return replace_settings(get_preset("moco-v1" if moco else "end-to-end"), settings)


def measure(point: CostPoint) -> StepCost:
    """What a step costs there.

    Raises:
        ValueError: It failed, for want of memory for example.

    """
    try:
        return measure_step(point.config, steps=point.steps)
    except ValueError as error:
        raise ValueError(f"cost: {point.way} at batch {point.batch}, K {point.negatives}: {error}") from error
