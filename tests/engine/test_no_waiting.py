"""A step never makes the host wait for the device: the CPU's twin of torch.cuda's sync debug mode (tests/test_gpu.py).

A host waits where it reads a value: `.item()`, `float(tensor)`, `if tensor:`, and where the shape of a result depends
on values, such as `nonzero` and indexing by a mask. torch's dispatcher sees each of these as an operation.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mocokit.config.toml import replace_settings
from mocokit.distributed.gradients import GradientSum
from mocokit.engine.optimizer import OPTIMIZERS, build_optimizer
from mocokit.engine.precision import Precision
from mocokit.engine.train import train_step
from mocokit.run.build import build_batches, build_run
from tests.small_presets import add_narrow_backbone, remove_narrow_backbone, small

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal"}


class Reads(TorchDispatchMode):
    """Names of the operations that made the host read a value of the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and remember its name if the host waits for its result."""
        name = func.name().partition(".")[0]
        by_mask = name.startswith(("aten::index", "aten::_index")) and any(
            isinstance(index, torch.Tensor) and index.dtype is torch.bool
            for argument in args
            if isinstance(argument, list | tuple)
            for index in argument
        )
        if name in READS or by_mask:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _narrow_backbone() -> Iterator[None]:
    add_narrow_backbone()
    yield
    remove_narrow_backbone()


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool((x > 0).any())])
def test_reads_are_found(read: Any) -> None:
    with Reads() as reads:
        read(torch.arange(4.0))
    assert reads.names


CASES: list[tuple[str, dict[str, object]]] = [
    ("moco-v2", {"method.bn_groups": 1, "method.mask_same_image": True}),
    ("moco-v2-cifar", {"method.patch_grid": 2}),
    ("moco-v2-cifar", {"augment.local_crops": 2, "augment.local_size": 16}),
    ("end-to-end", {"method.micro_groups": 1}),
    ("memory-bank", {}),
    ("simclr", {}),
    ("simclr", {"method.hardness": 0.5}),
    ("moco-v3-vit-s", {"optim.clip_norm": 1.0}),
    ("moco-v3-r50-100ep", {}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_step_of_each_method_reads_nothing(name: str, settings: dict[str, object], photos: Path) -> None:
    config = replace_settings(small(name, photos), settings)
    parts = build_run(config, torch.device("cpu"))
    for step, views in enumerate(build_batches(config, parts, start_step=0, total_steps=2)):
        with Reads() as reads:  # the first step makes buffers, the second is like all others
            train_step(
                parts.method,
                views,
                step,
                gradients=GradientSum(),
                optimizer=parts.optimizer,
                precision=parts.precision,
                clip_norm=config.optim.clip_norm,
            )
    assert reads.names == []


class ScaledOnCpu(Precision):
    """float32 with the loss scaler of float16, which on a CPU does nothing but scale."""

    def __init__(self) -> None:
        super().__init__("fp32", torch.device("cpu"))
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_loss_scaler_changes_no_step_and_reads_nothing(optimizer: str, photos: Path) -> None:
    settings = {"run.precision": "fp32", "optim.name": optimizer}
    config = replace_settings(small("moco-v3-r50-100ep", photos), settings)
    weights = []
    for precision in (Precision("fp32", torch.device("cpu")), ScaledOnCpu()):
        parts = build_run(config, torch.device("cpu"))
        for step, views in enumerate(build_batches(config, parts, start_step=0, total_steps=2)):
            with Reads() as reads:
                train_step(
                    parts.method, views, step, gradients=GradientSum(), optimizer=parts.optimizer, precision=precision
                )
        assert reads.names == []
        weights.append(torch.cat([parameter.detach().flatten() for parameter in parts.method.parameters()]))
    assert torch.allclose(weights[0], weights[1], rtol=1e-5, atol=1e-7), "1024 is a power of two"


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_an_infinite_gradient_under_a_loss_scaler_changes_nothing(name: str) -> None:
    net = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(net, name=name, lr=1.0, sgd_momentum=0.9, weight_decay=0.1, trust_coefficient=0.001)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(net(torch.ones(4, 3)).sum() * torch.inf).backward()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with Reads() as reads:
        scaler.step(optimizer)
        scaler.update()
    assert reads.names == []
    assert scaler.get_scale() == 512.0
    for parameter, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
