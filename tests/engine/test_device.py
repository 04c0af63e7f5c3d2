"""Names of devices; no machine with MPS was at hand, so for it only the choice is tested."""

import pytest
import torch

from mocokit.cli import main
from mocokit.engine.device import pick_device, sum_type

NO_DEVICES = ["xpu", "meta", "cpu:3", "cpu:0", "cuda:-1", "", " ", "gpu", "hpu:0", "CUDA", "cuda:", "mps:1", "cuda:1:2"]


@pytest.mark.parametrize("name", NO_DEVICES)
def test_any_other_name_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^run.device={name!r}: not a device; use auto, cpu, cuda or cuda:N, or mps"):
        pick_device(name, local_rank=0)


def test_a_device_that_torch_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:99"):
        with pytest.raises(ValueError, match=rf"run.device='{name}': torch sees no GPU here"):
            pick_device(name, local_rank=0)
    with pytest.raises(ValueError, match=r"run.device='mps': torch sees no MPS device here"):
        pick_device("mps", local_rank=0)
    assert pick_device("auto", local_rank=0) == torch.device("cpu")


def test_a_gpu_that_is_not_among_those_that_torch_sees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"run.device='cuda:99': the highest number here is cuda:1"):
        pick_device("cuda:99", local_rank=0)
    for name in ("cuda", "auto"):
        with pytest.raises(ValueError, match="rank 2 of this machine has no GPU, torch sees 2; start 2 ranks at most"):
            pick_device(name, local_rank=2)


def test_auto_is_mps_where_torch_has_it_and_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in ("auto", "mps"):
        assert pick_device(name, local_rank=0) == torch.device("mps")
    assert pick_device("cpu", local_rank=0) == torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pick_device("auto", local_rank=0) == torch.device("cpu"), "gloo can't send MPS's tensors"
    with pytest.raises(ValueError, match="ranks can't exchange tensors of MPS"):
        pick_device("mps", local_rank=0)


def test_metrics_are_summed_in_float64_except_on_mps() -> None:
    assert sum_type(torch.device("cpu")) == sum_type(torch.device("cuda")) == torch.float64
    assert sum_type(torch.device("mps")) == torch.float32


@pytest.mark.parametrize("command", ["pretrain", "bench", "detect"])
def test_a_command_answers_a_wrong_device_with_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    subject = "random" if command == "detect" else "moco-v2-small"
    assert main([command, subject, "--data", "/d", *(["--out", "/o"] * (command != "bench")), "--device", "meta"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mocokit: run.device='meta': not a device") and error.count("\n") == 1
