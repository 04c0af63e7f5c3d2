import math
from pathlib import Path

import pytest

from mocokit.config.presets import PRESETS
from mocokit.plan.measure_step import StepCost
from mocokit.reproduction import cost
from mocokit.reproduction.cost import WAYS, CostPoint, Measured, measure, measure_all, plan_points
from mocokit.reproduction.cost_table import crossover, findings, interpolate, peak_megabytes, published_cost
from mocokit.reproduction.figures import plot_cost


def _measured(way: str, batch: int, negatives: int, megabytes: float) -> Measured:
    return Measured(
        point=CostPoint(way=way, batch=batch, negatives=negatives),
        cost=StepCost(peak_megabytes=megabytes, step_s=1.0, fastest_s=1.0, slowest_s=1.0, cpu_s=1.0),
        machine={"threads": 1},
    )


FLAT = [_measured("moco", 256, k, 100.0) for k in (256, 65536)]


def test_the_crossover_of_a_flat_and_a_straight_line_is_where_they_meet(tmp_path: Path) -> None:
    line = [_measured("end-to-end", k, k, 0.5 * k) for k in (64, 128, 512)]  # 100 MB at 200
    found = crossover([*FLAT, *line], peak_megabytes)
    assert found is not None
    assert found[0] == pytest.approx(200.0)
    assert found[1], "it lies between measured points"
    assert "memory: end-to-end costs more than MoCo from about 200 negatives on" in findings([*FLAT, *line])
    plot_cost([*FLAT, *line], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_crossover_outside_the_measured_points_is_not_extrapolated() -> None:
    assert crossover([*FLAT, _measured("end-to-end", 64, 64, 150.0)], peak_megabytes) == (64, False)
    assert crossover([*FLAT, _measured("end-to-end", 64, 64, 50.0)], peak_megabytes) is None
    assert crossover(FLAT, peak_megabytes) is None


def test_interpolation_follows_powers_and_is_flat_beyond_the_ends() -> None:
    curve = [(k, 3.0 * math.sqrt(k)) for k in (4.0, 64.0, 1024.0)]
    assert interpolate(curve, 100.0) == pytest.approx(30.0)
    assert (interpolate(curve, 1.0), interpolate(curve, 10_000.0)) == (6.0, 96.0)


def test_the_points_are_all_mechanisms_at_equal_batch_and_moco_over_negatives() -> None:
    points = plan_points(arch="resnet10_w32", image_size=32, device="cpu", most=512)
    for batch in (64, 128, 256, 512):
        assert {point.way for point in points if point.batch == batch} == set(WAYS)
    assert sum(point.way == "moco" and point.batch == 256 for point in points) == 6
    assert len({(point.way, point.batch, point.negatives) for point in points}) == len(points)
    for point in points:
        config = point.config
        assert config.data.global_batch_size // config.method.bn_groups == 32
        assert config.method.name != "moco" or config.method.queue_size == point.negatives  # type: ignore[attr-defined]


def test_points_are_measured_once_and_failures_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()
    told = list[str]()

    def count(point: CostPoint) -> StepCost:
        calls.append(point.batch)
        if point.batch == 64:
            raise ValueError("cost: no memory")
        return StepCost(peak_megabytes=1.0, step_s=0.1, fastest_s=0.1, slowest_s=0.1, cpu_s=0.1)

    monkeypatch.setattr(cost, "measure", count)
    points = [CostPoint(way="moco", batch=batch, negatives=256) for batch in (32, 64)]
    for machine in ("that measures", "that resumes"):
        monkeypatch.setattr(cost, "describe_machine", lambda machine=machine: {"processor": machine})
        done = measure_all(points, tmp_path, on_point=lambda _point, _cost, problem: told.append(problem))
        assert [one.point.batch for one in done] == [32]
        assert done[0].machine == {"processor": "that measures"}
    assert calls == [32, 64, 64]
    assert told == ["", "cost: no memory"] * 2


def test_hours_and_memory_are_given_only_where_they_are_published() -> None:
    assert published_cost(PRESETS["moco-v2"]).startswith("53 h and 5.0 GB")
    assert published_cost(PRESETS["moco-v2-800ep"]).startswith("212 h")
    assert published_cost(PRESETS["simclr"]) == published_cost(PRESETS["moco-v2-cifar"]) == ""


@pytest.mark.slow
def test_memory_grows_with_the_batch_end_to_end_and_only_by_the_keys_in_moco() -> None:
    def peak(way: str, batch: int, negatives: int) -> float:
        return measure(CostPoint(way=way, batch=batch, negatives=negatives, image_size=32, steps=1)).peak_megabytes

    few = peak("moco", 64, 64)
    many = peak("moco", 64, 64 + 2**18)
    assert many - few == pytest.approx(128, rel=0.5), "2^18 keys of 128 floats are 128 MiB"
    whole = peak("end-to-end", 64, 64)
    larger = peak("end-to-end", 512, 512)
    assert larger > 2 * whole
    assert peak("end-to-end, cached", 512, 512) < larger / 1.5
    with pytest.raises(ValueError, match=r"cost: moco at batch 0"):
        peak("moco", 0, 64)
