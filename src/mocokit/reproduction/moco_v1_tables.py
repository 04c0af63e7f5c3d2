"""Figure 3 of MoCo v1 (He et al. 2019, arXiv:1911.05722): three mechanisms against the number of negatives K."""

from mocokit.reproduction.table import Cell, Expected, Table

SMALL_K = {256: 128, 512: 256, 1024: 512, 4096: 1024, 16384: 1536, 65536: 2048}
"""K at small scale: from the batch to nearly all of the embedded sample's 2,293 images."""

# 60.6 is the published model's (README); 58.0 is quoted from memory of sec. 4.1. The figure's other points are curves.
EXPECTED = {
    ("MoCo", 65536): Expected(value=60.6, source="facebookresearch/moco README"),
    ("memory bank", 65536): Expected(value=58.0, source="MoCo v1 sec. 4.1 [paper recall]"),
}


def _cell(series: str, preset: str, k: int, settings: dict[str, object], small: dict[str, object]) -> Cell:
    expected = EXPECTED.get((series, k))
    return Cell(
        name=f"{series.replace(' ', '-')},K={k}",
        preset=preset,
        settings=settings,
        small=small,
        series=series,
        x=k,
        small_x=SMALL_K[k],
        expected={} if expected is None else {"linear": expected},
    )


def _end_to_end(k: int) -> Cell:
    """The batch is the dictionary; the rate grows with it (sec. 4.1: linear scaling)."""
    return _cell(
        "end-to-end",
        "end-to-end",
        k,
        {"data.global_batch_size": k, "optim.lr": 0.03 * k / 256},
        {"data.global_batch_size": SMALL_K[k], "optim.lr": 0.1 * SMALL_K[k] / 128},
    )


def _memory_bank(k: int) -> Cell:
    return _cell("memory bank", "memory-bank", k, {"method.num_negatives": k}, {"method.num_negatives": SMALL_K[k]})


def _moco(k: int) -> Cell:
    return _cell("MoCo", "moco-v1", k, {"method.queue_size": k}, {"method.queue_size": SMALL_K[k]})


MECHANISMS = Table(
    name="mechanisms",
    title="End-to-end, memory bank and MoCo against the number of negatives",
    source="MoCo v1 fig. 3",
    metrics=("linear",),
    small_epochs=8,
    x_label="number of negatives K",
    log_x=True,
    cells=(
        *(_end_to_end(k) for k in (256, 512, 1024)),
        *(_memory_bank(k) for k in SMALL_K),
        *(_moco(k) for k in SMALL_K),
    ),
)
