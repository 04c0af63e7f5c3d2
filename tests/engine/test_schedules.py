import itertools
import math

import pytest

from mocokit.engine.schedules import learning_rate


def _rate(step: int, *, schedule: str, by: str, warmup_epochs: float = 0.0) -> float:
    return learning_rate(
        step,
        steps_per_epoch=10,
        epochs=200,
        peak_lr=0.03,
        milestones=(120, 160),
        schedule=schedule,
        by=by,
        warmup_epochs=warmup_epochs,
    )


def test_cosine_by_epoch_is_the_official_formula() -> None:
    for step in range(0, 2000, 7):
        want = 0.03 * 0.5 * (1 + math.cos(math.pi * (step // 10) / 200))
        assert _rate(step, schedule="cosine", by="epoch", warmup_epochs=0) == pytest.approx(want)


def test_steps_divide_by_ten_at_120_and_160() -> None:
    rates = [_rate(10 * e, schedule="step", by="epoch", warmup_epochs=0) for e in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])


def test_by_step_is_smooth_and_ends_near_zero() -> None:
    rates = [_rate(s, schedule="cosine", by="step", warmup_epochs=0) for s in range(2000)]
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[1000] == pytest.approx(0.015)
    assert rates[-1] < 1e-7


def test_warm_up_rises_linearly_to_the_peak() -> None:
    rates = [_rate(s, schedule="cosine", by="step", warmup_epochs=2.0) for s in range(21)]
    assert rates[:20] == pytest.approx([0.03 * (s + 1) / 20 for s in range(20)])
    assert rates[20] == pytest.approx(0.03)
