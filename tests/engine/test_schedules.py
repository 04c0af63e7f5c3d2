import itertools
import math

import pytest

from mocokit.engine.schedules import SCHEDULES, learning_rate


def _rate(step: int, *, schedule: str, by: str = "step", warmup_epochs: float = 0.0) -> float:
    return learning_rate(
        step,
        steps_per_epoch=10,
        epochs=200,
        peak_lr=0.03,
        schedule=schedule,
        milestones=(120, 160),
        by=by,
        warmup_epochs=warmup_epochs,
    )


def test_cosine_by_epoch_is_the_official_formula_bit_by_bit() -> None:
    for step in range(0, 2000, 7):
        want = 0.03 * 0.5 * (1 + math.cos(math.pi * (step // 10) / 200))
        assert _rate(step, schedule="cosine", by="epoch") == pytest.approx(want, rel=1e-15)
        assert _rate(step, schedule="cosine", by="epoch") == 0.5 * 0.03 * (1.0 + math.cos(math.pi * (step // 10 / 200)))


def test_steps_divide_by_ten_at_120_and_160() -> None:
    rates = [_rate(10 * e, schedule="step", by="epoch") for e in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])
    assert rates == [0.03, 0.03, 0.03 * 0.1, 0.03 * 0.1, 0.03 * 0.1**2, 0.03 * 0.1**2], "bit by bit"


@pytest.mark.parametrize("by", ["epoch", "step"])
def test_a_constant_rate_stays_at_the_peak(by: str) -> None:
    assert {_rate(step, schedule="constant", by=by) for step in range(2000)} == {0.03}


def test_by_step_is_smooth_and_ends_near_zero() -> None:
    rates = [_rate(s, schedule="cosine") for s in range(2000)]
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[1000] == pytest.approx(0.015)
    assert rates[-1] < 1e-7


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_schedule_warms_up_linearly_to_the_peak(schedule: str) -> None:
    rates = [_rate(s, schedule=schedule, warmup_epochs=2.0) for s in range(21)]
    assert rates[:20] == pytest.approx([0.03 * (s + 1) / 20 for s in range(20)])
    assert rates[20] == pytest.approx(0.03)


@pytest.mark.parametrize("by", ["epoch", "step"])
def test_a_cosine_after_a_warm_up_takes_the_remaining_epochs(by: str) -> None:
    for epoch in (2, 50, 101, 199):
        want = 0.015 * (1 + math.cos(math.pi * (epoch - 2) / 198))
        assert _rate(10 * epoch, schedule="cosine", by=by, warmup_epochs=2.0) == pytest.approx(want, rel=1e-12)


def test_an_unknown_schedule_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"optim.schedule='cos': unknown; .*\['cosine', 'step', 'constant'\]"):
        _rate(0, schedule="cos")
