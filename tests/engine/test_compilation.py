import pytest
import torch

from mocokit.engine import compilation
from mocokit.engine.compilation import PAYS_FROM_STEPS, should_compile

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("asked", "device", "total_steps", "answer"),
    [
        ("auto", GPU, PAYS_FROM_STEPS, True),
        ("auto", GPU, PAYS_FROM_STEPS - 1, False),
        ("auto", CPU, 10**6, False),
        ("on", CPU, 1, True),
        ("off", GPU, 10**6, False),
    ],
)
def test_auto_compiles_long_runs_on_a_gpu(
    asked: str, device: torch.device, total_steps: int, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "has_code_generator", lambda: True)
    assert should_compile(asked, device, total_steps=total_steps) is answer


def test_auto_compiles_nothing_without_a_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not should_compile("auto", GPU, total_steps=10**6)
