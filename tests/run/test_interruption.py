"""Real processes, really killed."""

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import mocokit
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from tests.forked_ranks import RunningRanks
from tests.run_process import final_state, finish, flags_of, same, start, start_process, wait_for_step

Tiny = Callable[..., Config]
PRESET = ["pretrain", "moco-v2-small"]


def _start(config: Config, out: Path) -> RunningRanks:
    return start([*PRESET, *flags_of(config), "--out", str(out)])


@pytest.fixture
def long_run(tiny: Tiny) -> Config:
    """40 steps with two workers, saved about every second step."""
    return tiny(**{"optim.epochs": 8, "data.workers": 2, "run.save_minutes": 0.002})


def test_a_run_killed_at_random_steps_ends_bit_equal_to_one_that_was_not(long_run: Config, tmp_path: Path) -> None:
    assert finish(_start(long_run, tmp_path / "whole"))[0] == 0
    process = _start(long_run, tmp_path / "run")
    run = tmp_path / "run"
    rng = random.Random(1)
    for step in sorted(rng.sample(range(3, 38), 3)):
        wait_for_step(run, step)
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
        process = start(["resume", str(run)])
    code, output = finish(process)
    assert code == 0, output
    assert same(final_state(run), final_state(tmp_path / "whole"))
    whole, resumed = ((path / "metrics.jsonl").read_text() for path in (tmp_path / "whole", run))
    assert _losses(resumed) == _losses(whole), "each step is logged once"


def _losses(metrics: str) -> list[tuple[object, object]]:
    import json

    lines = [json.loads(line) for line in metrics.splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_ends_with_a_line_that_names_resume(
    long_run: Config, tmp_path: Path, number: signal.Signals
) -> None:
    process = _start(long_run, tmp_path / "run")
    run = tmp_path / "run"
    wait_for_step(run, 7)
    process.send_signal(number)
    code, output = finish(process)
    assert code == 128 + number, output
    assert f"continue with: mocokit resume {run}" in output
    step = final_state(run)["step"]
    assert f"stopped at step {step} of 40" in output
    assert 7 <= step < 40
    assert "Traceback" not in output


def test_a_run_goes_on_when_a_loader_worker_is_killed(long_run: Config, tmp_path: Path) -> None:
    process = _start(replace_settings(long_run, {"optim.epochs": 20}), tmp_path / "run")  # still busy when it is killed
    run = tmp_path / "run"
    wait_for_step(run, 7)
    worker = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
    os.kill(int(worker), signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert f"warning: workers=2: worker process {worker} was killed" in output
    assert f"worker process {worker} was killed" in (run / "log.txt").read_text()
    assert [step for step, _ in _losses((run / "metrics.jsonl").read_text())] == list(range(1, 101))


def test_a_run_in_another_thread_trains_and_leaves_signals_to_the_main_thread(tiny: Tiny, tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    seen = list[object]()

    def look() -> None:
        result = mocokit.pretrain(tiny(**{"optim.epochs": 1, "data.workers": 1}), out=tmp_path / "run")
        seen.extend([result.step, result.signal, *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [5, None, *handlers]


@pytest.mark.dist
def test_losses_do_not_depend_on_the_number_of_ranks(tiny: Tiny, tmp_path: Path) -> None:
    """20 steps through the real data pipeline, float64: 1, 2 and 4 gloo ranks, and micro-batches of one group."""
    losses: dict[str, list[float]] = {}
    for name, ranks, micro in (("1", 0, 0), ("2", 2, 0), ("4", 4, 0), ("2 micro", 2, 1)):
        config = tiny(**{"optim.epochs": 4, "run.precision": "fp64", "method.micro_groups": micro})
        run = tmp_path / name.replace(" ", "_")
        code, output = finish(start([*PRESET, *flags_of(config), "--out", str(run)], ranks=ranks))
        assert code == 0, output[-3000:]
        losses[name] = [float(loss) for _, loss in _losses((run / "metrics.jsonl").read_text())]  # type: ignore[arg-type]
    assert len(losses["1"]) == 20
    for name in ("2", "4", "2 micro"):
        assert losses[name] == pytest.approx(losses["1"], rel=1e-9), name


@pytest.mark.dist
def test_a_signal_to_one_rank_stops_all_with_one_checkpoint(long_run: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_process([*PRESET, *flags_of(long_run), "--out", str(run)], ranks=2)
    wait_for_step(run, 3)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on to its ranks
    _, output = finish(process)
    assert f"continue with: mocokit resume {run}" in output
    code, output = finish(start(["resume", str(run)]))
    assert code == 0, "the other number of ranks goes on: " + output
    assert final_state(run)["step"] == 40


@pytest.mark.dist
@pytest.mark.parametrize("hit", [0, 1])
def test_a_signal_to_one_rank_alone_ends_all_with_the_same_word_and_exit_code(
    hit: int, long_run: Config, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start([*PRESET, *flags_of(long_run), "--out", str(run)], ranks=2)
    wait_for_step(run, 3)
    os.kill(process.pids[hit], signal.SIGUSR1)
    _, output = finish(process)
    _expect_a_stop(run, output)
    assert process.returncodes == [128 + signal.SIGUSR1] * 2


@pytest.mark.slow
@pytest.mark.dist
def test_torchrun_lets_rank_0_speak_though_another_rank_ends_first(long_run: Config, tmp_path: Path) -> None:
    """torchrun sends SIGTERM to the other ranks as soon as one has ended with another exit code than 0."""
    run = tmp_path / "run"
    process = start_process([*PRESET, *flags_of(long_run), "--out", str(run)], ranks=2)
    wait_for_step(run, 3)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    hit = next(int(rank) for rank in ranks if "\0RANK=1\0" in Path(f"/proc/{rank}/environ").read_text())
    os.kill(hit, signal.SIGUSR1)
    _, output = finish(process)
    _expect_a_stop(run, output)
    codes = [line.split(":")[1].split()[0] for line in output.splitlines() if line.strip().startswith("exitcode")]
    assert set(codes) == {str(128 + signal.SIGUSR1)}, output


def _expect_a_stop(run: Path, output: str) -> None:
    step = final_state(run)["step"]
    assert 3 <= step < 40
    assert output.count(f"stopped at step {step} of 40; continue with: mocokit resume {run}") == 1, output
    assert "done:" not in output
