"""MoCo v2's Table 3, memory and time of the two mechanisms, as published: 8 V100 of 16 GB, ResNet-50, 200 epochs."""

from dataclasses import dataclass

from mocokit.config.schema import Config


@dataclass(frozen=True, kw_only=True)
class PublishedCost:
    """One row of the table."""

    mechanism: str
    """Name of the method here."""
    batch: int
    gigabytes: float
    """A GPU."""
    hours: float | None
    """Of 200 epochs; None: not possible on that machine."""
    source: str


RECALL = "MoCo v2 Table 3 [paper recall]"

PUBLISHED = (
    PublishedCost(mechanism="moco", batch=256, gigabytes=5.0, hours=53, source=f"{RECALL}; hours: moco README"),
    PublishedCost(mechanism="end-to-end", batch=256, gigabytes=7.4, hours=65, source=RECALL),
    PublishedCost(mechanism="end-to-end", batch=4096, gigabytes=93.0, hours=None, source=f"{RECALL}, estimated"),
)


def published_cost(config: Config) -> str:
    """Hours and memory of a run like one of the table's, in words; empty where the table says nothing."""
    for row in PUBLISHED:
        same = (config.method.name, config.data.global_batch_size) == (row.mechanism, row.batch)
        if same and config.model.arch == "resnet50":
            hours = "" if row.hours is None else f"{row.hours * config.optim.epochs / 200:.0f} h and "
            return f"{hours}{row.gigabytes:.1f} GB a GPU on 8 V100 ({row.source})"
    return ""
