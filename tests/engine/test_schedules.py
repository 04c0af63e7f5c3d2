import itertools
import math

import pytest

from mocokit.config.presets import get_preset
from mocokit.config.toml import replace_settings
from mocokit.engine.schedules import SCHEDULES, learning_rate
from mocokit.run.build import lr_of_step


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
@pytest.mark.parametrize("by", ["epoch", "step"])
def test_every_schedule_warms_up_linearly_from_0_to_the_peak(schedule: str, by: str) -> None:
    rates = [_rate(s, schedule=schedule, by=by, warmup_epochs=2.0) for s in range(21)]
    assert rates == pytest.approx([0.03 * s / 20 for s in range(21)])
    assert (rates[0], rates[20]) == (0.0, 0.03)


def _preset_rates(name: str, steps_per_epoch: int) -> list[float]:
    config = get_preset(name)
    rate = lr_of_step(config, steps_per_epoch)
    return [rate(step) for step in range(config.optim.epochs * steps_per_epoch)]


@pytest.mark.parametrize(
    ("name", "base", "epochs", "warmup"),
    [
        ("moco-v3-r50-100ep", 0.6, 100, 10),
        ("moco-v3-r50-300ep", 0.3, 300, 10),
        ("moco-v3-r50-1000ep", 0.3, 1000, 10),
        ("moco-v3-vit-s", 1.5e-4, 300, 40),
        ("moco-v3-vit-b", 1.5e-4, 300, 40),
    ],
)
def test_moco_v3s_rates_are_its_formulas(name: str, base: float, epochs: int, warmup: int) -> None:
    """facebookresearch/moco-v3@c349e6e main_moco.py: the epoch is fractional, epoch + iteration / iterations."""
    peak = base * 4096 / 256
    want = list[float]()
    for epoch in range(epochs):
        for iteration in range(7):
            at = epoch + iteration / 7
            share = at / warmup if at < warmup else (1 + math.cos(math.pi * (at - warmup) / (epochs - warmup))) / 2
            want.append(peak * share)
    assert _preset_rates(name, 7) == pytest.approx(want, rel=1e-12, abs=1e-16)


@pytest.mark.parametrize(("name", "peak", "epochs"), [("simclr", 4.8, 100), ("simclr-cifar", 2.0, 1000)])
def test_simclrs_rates_are_its_formulas(name: str, peak: float, epochs: int) -> None:
    """google-research/simclr@383d414 model_util.py: the global step over the steps of warm-up, then TensorFlow's
    cosine decay of the steps since. There, steps are images / batch rounded down once, not once an epoch."""
    warm = 10 * 7
    total = epochs * 7
    want = list[float]()
    for global_step in range(total):
        cosine = 0.5 * (1 + math.cos(math.pi * min(global_step - warm, total - warm) / (total - warm)))
        want.append(peak * (global_step / warm if global_step < warm else cosine))
    assert _preset_rates(name, 7) == pytest.approx(want, rel=1e-12, abs=1e-16)


def test_fast_mocos_rates_are_its_formulas() -> None:
    """orashi/Fast-MoCo@d4fef97 core/lr_scheduler/lambda_scheduler.py, whose iterations count from 1."""
    warm = 7
    last = 100 * 7
    want = list[float]()
    for iteration in range(1, last + 1):
        rising = 0.025 + (0.1 - 0.025) * (iteration - 1) / (warm - 1)
        falling = 0.1 * 0.5 * (1 + math.cos(math.pi * (iteration - warm) / (last - warm)))
        want.append(rising if iteration <= warm else falling)
    rates = _preset_rates("fast-moco", 7)
    assert rates == pytest.approx(want, rel=1e-12, abs=1e-16)
    assert [rates[0], rates[6], rates[-1]] == pytest.approx([0.025, 0.1, 0.0])


def test_the_cifar_notebooks_epochs_count_from_1() -> None:
    want = [0.06 * 0.5 * (1 + math.cos(math.pi * epoch / 200)) for epoch in range(1, 201) for _ in range(3)]
    assert _preset_rates("moco-v2-cifar", 3) == pytest.approx(want, rel=1e-12, abs=1e-16)


@pytest.mark.parametrize("name", ["moco-v2", "moco-v2-800ep"])
def test_moco_v2s_rates_are_its_formulas(name: str) -> None:
    """facebookresearch/moco@5df3287 main_moco.py: once an epoch, from 0."""
    epochs = get_preset(name).optim.epochs
    want = [0.03 * 0.5 * (1 + math.cos(math.pi * epoch / epochs)) for epoch in range(epochs) for _ in range(3)]
    assert _preset_rates(name, 3) == pytest.approx(want, rel=1e-14)


def test_milestones_count_from_1_too_if_the_schedule_ends_with_its_last_epoch() -> None:
    """The notebook: times 0.1 from epoch 120 on, which is the 120th."""
    config = replace_settings(get_preset("moco-v2-cifar"), {"optim.schedule": "step"})
    rates = [lr_of_step(config, 1)(epoch) for epoch in range(200)]
    assert rates == pytest.approx([0.06] * 119 + [0.006] * 40 + [0.0006] * 41)


@pytest.mark.parametrize("by", ["epoch", "step"])
def test_a_cosine_after_a_warm_up_takes_the_remaining_epochs(by: str) -> None:
    for epoch in (2, 50, 101, 199):
        want = 0.015 * (1 + math.cos(math.pi * (epoch - 2) / 198))
        assert _rate(10 * epoch, schedule="cosine", by=by, warmup_epochs=2.0) == pytest.approx(want, rel=1e-12)


def test_an_unknown_schedule_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"optim.schedule='cos': unknown; .*\['cosine', 'step', 'constant'\]"):
        _rate(0, schedule="cos")
