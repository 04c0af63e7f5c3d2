import itertools
import math

import pytest

from mocokit.engine.schedules import learning_rate

COMMON = {"steps_per_epoch": 10, "epochs": 200, "peak_lr": 0.03, "milestones": (120, 160)}


def test_cosine_by_epoch_is_the_official_formula() -> None:
    for step in range(0, 2000, 7):
        want = 0.03 * 0.5 * (1 + math.cos(math.pi * (step // 10) / 200))
        assert learning_rate(step, cos=True, by="epoch", warmup_epochs=0, **COMMON) == pytest.approx(want)  # type: ignore[arg-type]


def test_steps_divide_by_ten_at_120_and_160() -> None:
    rates = [
        learning_rate(10 * e, cos=False, by="epoch", warmup_epochs=0, **COMMON) for e in (0, 119, 120, 159, 160, 199)
    ]  # type: ignore[arg-type]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])


def test_by_step_is_smooth_and_ends_near_zero() -> None:
    rates = [learning_rate(s, cos=True, by="step", warmup_epochs=0, **COMMON) for s in range(2000)]  # type: ignore[arg-type]
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[1000] == pytest.approx(0.015)
    assert rates[-1] < 1e-7


def test_warm_up_rises_linearly_to_the_peak() -> None:
    rates = [learning_rate(s, cos=True, by="step", warmup_epochs=2.0, **COMMON) for s in range(21)]  # type: ignore[arg-type]
    assert rates[:20] == pytest.approx([0.03 * (s + 1) / 20 for s in range(20)])
    assert rates[20] == pytest.approx(0.03)
