import math

import pytest

from mocokit.evaluate.protocols import (
    FINETUNE_PROTOCOLS,
    LINEAR_PROTOCOLS,
    batch_size_for,
)
from mocokit.settings import choose


@pytest.mark.parametrize(
    ("name", "lr", "batch", "weight_decay", "epochs", "nesterov"),
    [
        ("moco", 30.0, 256, 0.0, 100, False),  # main_lincls.py
        ("moco-v3-r50", 0.4, 1024, 0.0, 90, False),  # CONFIG.md: 0.1 * 1024 / 256
        ("moco-v3-vit", 12.0, 1024, 0.0, 90, False),  # 3 * 1024 / 256
        ("simclr", 1.6, 4096, 1e-6, 90, True),  # 0.1 * 4096 / 256
        ("lightly", 0.1, 256, 0.0, 90, False),
    ],
)
def test_the_published_numbers(
    name: str, lr: float, batch: int, weight_decay: float, epochs: int, nesterov: bool
) -> None:
    protocol = LINEAR_PROTOCOLS[name]
    assert protocol.lr == pytest.approx(lr)
    assert (protocol.batch_size, protocol.weight_decay, protocol.schedule.epochs, protocol.nesterov) == (
        batch,
        weight_decay,
        epochs,
        nesterov,
    )


def test_moco_drops_tenfold_at_60_and_80() -> None:
    schedule = LINEAR_PROTOCOLS["moco"].schedule
    rates = [schedule.lr(7 * epoch + 3, steps_per_epoch=7, peak_lr=30.0) for epoch in (0, 59, 60, 79, 80, 99)]
    assert rates == pytest.approx([30, 30, 3, 3, 0.3, 0.3])


def test_moco_v3_falls_every_epoch_and_simclr_every_step() -> None:
    for name, epoch_of in (("moco-v3-r50", math.floor), ("simclr", float)):
        schedule = LINEAR_PROTOCOLS[name].schedule
        for step in (0, 3, 44, 449, 899):
            want = 0.5 * (1 + math.cos(math.pi * epoch_of(step / 10) / 90))
            assert schedule.lr(step, steps_per_epoch=10, peak_lr=1.0) == pytest.approx(want)


def test_a_shorter_schedule_keeps_its_shape_and_the_id_tells_the_epochs() -> None:
    short = LINEAR_PROTOCOLS["moco"].fitted(10**6, epochs_scale=0.1)
    assert list(short.schedule.milestones) == [6, 8]
    assert str(short) == "linear/moco@b256,e10"
    grid = FINETUNE_PROTOCOLS["lr-grid"].fitted(10**6, epochs_scale=0.5)
    assert list(grid.schedule.milestones) == [6, 8]
    assert [grid.schedule.lr(e, steps_per_epoch=1, peak_lr=1.0) for e in (5, 6, 8)] == pytest.approx([1, 0.2, 0.04])
    assert grid.id_for("1%") == "finetune/lr-grid@1%,b256,e10"
    shortest = FINETUNE_PROTOCOLS["lr-grid"].fitted(10**6, epochs_scale=0.1)
    rates = [shortest.schedule.lr(step, steps_per_epoch=10, peak_lr=1.0) for step in (11, 12, 15, 16, 19)]
    assert rates == pytest.approx([1, 0.2, 0.2, 0.04, 0.04]), "2 epochs drop at 1.2 and 1.6"


def test_simclr_fine_tunes_at_the_root_of_the_batch_and_the_grid_has_nine_pairs() -> None:
    ((lr, multiplier),) = FINETUNE_PROTOCOLS["simclr"].fitted(12_811).pairs
    assert (lr, multiplier) == pytest.approx((0.16, 1.0))
    pairs = FINETUNE_PROTOCOLS["lr-grid"].pairs
    assert set(pairs) == {(lr, multiplier) for lr in (0.1, 0.01, 0.001) for multiplier in (1, 10, 100)}


def test_a_small_set_gets_a_smaller_batch_and_imagenets_one_percent_the_published_ones() -> None:
    assert [batch_size_for(12_811, wanted) for wanted in (256, 1024)] == [256, 1024]
    assert [batch_size_for(count, 256) for count in (2048, 2047, 600, 23, 1)] == [256, 128, 64, 2, 2]


def test_the_learning_rate_scales_with_the_batch() -> None:
    assert LINEAR_PROTOCOLS["moco"].fitted(1000).lr == pytest.approx(30 * 64 / 256)


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"protocol='moco-v3': unknown; did you mean moco-v3-vit"):
        choose("protocol", "moco-v3", LINEAR_PROTOCOLS)
