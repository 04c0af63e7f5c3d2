"""What only a GPU can show; `pytest -m gpu` runs these where there is one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mocokit.cli import main
from mocokit.config.schema import Config
from mocokit.data.loading.prefetch import on_device
from mocokit.engine.device import pick_device
from mocokit.plan.bench import trainer
from mocokit.run.build import Parts, build_batches, build_run
from mocokit.run.demo import sample_path

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
STEPS = 8


def _assembled(tiny: Callable[..., Config], photos: Path, device: str, **settings: object) -> tuple[Config, Parts]:
    config = tiny(**{"data.source": str(photos), "run.device": device, **settings})
    return config, build_run(config, pick_device(device, local_rank=0))


def _losses(tiny: Callable[..., Config], photos: Path, device: str, **settings: object) -> torch.Tensor:
    config, parts = _assembled(tiny, photos, device, **settings)
    batches = build_batches(config, parts, start_step=0, total_steps=STEPS)
    train = trainer(parts)
    losses = []
    for step, batch in enumerate(on_device(batches, parts.device)):
        rows, _ = train(batch, step)
        losses.append(rows["loss"].mean().double().cpu())
    return torch.stack(losses)


def test_the_trajectory_is_that_of_the_cpu(tiny: Callable[..., Config], photos: Path) -> None:
    on_cpu, on_gpu = (_losses(tiny, photos, device, **{"run.precision": "fp64"}) for device in ("cpu", "cuda"))
    assert torch.allclose(on_gpu, on_cpu, rtol=1e-9)


def test_a_compiled_run_follows_the_eager_one(tiny: Callable[..., Config], photos: Path) -> None:
    exact: dict[str, object] = {"run.precision": "fp64"}
    eager, compiled = (_losses(tiny, photos, "cuda", **exact, **{"run.compile": choice}) for choice in ("off", "on"))
    assert torch.allclose(eager, compiled, rtol=1e-9), (eager, compiled)


@pytest.mark.parametrize("settings", [{}, {"run.precision": "bf16"}, {"method.mask_same_image": True}])
def test_a_step_never_waits_for_the_device(
    settings: dict[str, object], tiny: Callable[..., Config], photos: Path
) -> None:
    config, parts = _assembled(tiny, photos, "cuda", **settings)
    batch = next(on_device(build_batches(config, parts, start_step=0, total_steps=2), parts.device))
    train = trainer(parts)
    train(batch, 0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(batch, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_command_trains_resumes_and_exports_for_the_cpu(tmp_path: Path) -> None:
    sample = str(sample_path("val"))
    out = tmp_path / "run"
    flags = ["--data", sample, "--device", "cuda", "--global-batch-size", "64", "--bn-groups", "2"]
    assert main(["pretrain", "moco-v2-small", *flags, "--epochs", "2", "--out", str(out)]) == 0
    assert main(["resume", str(out)]) == 0
    weights = load_file(out / "backbone.safetensors", device="cpu")
    assert all(torch.isfinite(value).all() for value in weights.values())
