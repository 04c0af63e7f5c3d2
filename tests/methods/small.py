"""One step of any method on a small encoder in float64, for tests."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mocokit.engine.optimizer import build_sgd
from mocokit.engine.train import Method
from mocokit.methods.groups import GroupLayout
from mocokit.nets.encoder import Encoder
from mocokit.nets.heads import build_head
from mocokit.run.verify import TraceBackbone

B = 16
C = 8
Noise = Callable[..., Tensor]


def encoder(*, predictor: nn.Module | None = None) -> Encoder:
    """The golden traces' backbone with an MLP head; the same weights each time."""
    torch.manual_seed(0)
    return Encoder(TraceBackbone(), build_head(16, C, mlp=True), predictor).double()


def order(step: int, size: int) -> Tensor:
    """Shuffling BN's permutation."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(step))


def layout(groups: int = 4, micro: int = 0) -> GroupLayout:
    """All groups in this process."""
    return GroupLayout(bn_groups=groups, micro_groups=micro)


def views(noise: Noise, step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(query, key, image indices) of one batch."""
    return (
        noise(B, seed=2 * step).double() / 255,
        noise(B, seed=2 * step + 1).double() / 255,
        torch.arange(B) + B * step,
    )


def local_crops(noise: Noise, num_crops: int, step: int = 0) -> Tensor | None:
    """Crops of half the views' side; None without any."""
    if not num_crops:
        return None
    crops = noise(B * num_crops, size=8, seed=1000 + step).double() / 255
    return crops.view(B, num_crops, 3, 8, 8)


def step_of(method: Method, noise: Noise, step: int, lr: float = 0.05, num_crops: int = 0) -> list[float]:
    """Train one step; the micro-batches' losses."""
    assert isinstance(method, nn.Module)
    optimizer = build_sgd(method, lr=lr, sgd_momentum=0.0, weight_decay=0.0)
    method.prepare(*views(noise, step), step, local_crops(noise, num_crops, step))
    losses = []
    for loss in method.micro_losses():
        loss.backward()
        losses.append(loss.item())
    optimizer.step()
    method.remember()
    return losses


def assert_any_micro_batch_gives_the_same_run(
    build: Callable[[int], Method], noise: Noise, micro: int, num_crops: int
) -> None:
    """Losses, weights, gradients' effect and BatchNorm statistics of three steps, `micro` groups at a time or all."""
    whole = build(0)
    parts = build(micro)
    for step in range(3):
        losses = [sum(step_of(method, noise, step, num_crops=num_crops)) for method in (whole, parts)]
        assert abs(losses[1] - losses[0]) < 1e-10
        for name, rows in whole.row_metrics.items():
            assert torch.allclose(parts.row_metrics[name], rows, rtol=1e-9, atol=1e-12), name
    assert isinstance(whole, nn.Module) and isinstance(parts, nn.Module)
    for name, value in whole.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.allclose(parts.state_dict()[name], value, rtol=1e-9, atol=1e-12), name
