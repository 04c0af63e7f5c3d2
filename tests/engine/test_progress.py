"""What the progress lines say, in their units."""

from types import SimpleNamespace

import pytest

from mocokit.engine import progress
from mocokit.engine.progress import ProgressView

VALUES = {"loss": 2.5, "contrast_acc": 0.125, "images_per_s": 1234.5, "data_wait_share": 0.256}


class Clock:
    """A clock that a test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    return clock


def test_a_line_tells_position_means_and_the_time_left_of_a_resumed_run(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    view = ProgressView(total_steps=100, done_steps=50, steps_per_epoch=10, chance_loss=4.16)
    clock.now_s += 20
    view.metrics(60, VALUES)  # 10 steps in 20 s, 40 to go
    line = "loss 2.500 (chance 4.16)  contrast_acc 12.5%  1,234 img/s  data wait 26%"
    assert capsys.readouterr().err == f"epoch 6/10 step 60/100  {line}  ETA 0:01:20\n"
    clock.now_s += 29
    view.metrics(61, VALUES)
    assert capsys.readouterr().err == "", "one line in 30 s"
    clock.now_s += 1
    view.metrics(75, {**VALUES, "skipped_steps": 3.0})  # 25 steps in 50 s
    assert capsys.readouterr().err == f"epoch 8/10 step 75/100  {line}  skipped 3 steps  ETA 0:00:50\n"
    view.metrics(100, {**VALUES, "skipped_steps": 0.0})
    assert capsys.readouterr().err == f"epoch 10/10 step 100/100  {line}  ETA 0:00:00\n", "the last one is always told"
