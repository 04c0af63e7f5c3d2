"""One step of any method on a small encoder in float64, for tests."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mocokit.data.batch import ViewBatch
from mocokit.engine.optimizer import build_sgd
from mocokit.methods.contract import Method, Rows, cat_rows
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


def views(noise: Noise, step: int = 0, *, num_crops: int = 0) -> ViewBatch:
    """One batch: float64 views of 16 px and, if asked for, crops of half that side."""
    local = None
    if num_crops:
        crops = noise(B * num_crops, size=8, seed=1000 + step).double() / 255
        local = crops.view(B, num_crops, 3, 8, 8)
    return ViewBatch(
        query=noise(B, seed=2 * step).double() / 255,
        key=noise(B, seed=2 * step + 1).double() / 255,
        image_ids=torch.arange(B) + B * step,
        local=local,
    )


def exchanged(batch: ViewBatch) -> ViewBatch:
    """The same views with their roles exchanged."""
    return replace(batch, query=batch.key, key=batch.query)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The forward and backward passes of one batch."""

    batch: Any
    losses: list[float]
    """Of each micro-batch."""
    rows: Rows

    @property
    def total(self) -> float:
        """The batch's mean loss."""
        return sum(self.losses)


def passes(method: Method[Any], batch_views: ViewBatch, step: int = 0) -> Passes:
    """Run the passes; gradients are added to the parameters'."""
    batch = method.prepare(batch_views, step)
    losses = []
    parts = []
    for micro in method.layout.micro_batches_of(len(batch_views.query)):
        loss, rows = method.loss(batch, micro)
        loss.backward()
        losses.append(loss.item())
        parts.append(rows)
    return Passes(batch=batch, losses=losses, rows=cat_rows(parts))


def step_of(method: Method[Any], noise: Noise, step: int, lr: float = 0.05, num_crops: int = 0) -> Passes:
    """Train one step."""
    optimizer = build_sgd(method, lr=lr, sgd_momentum=0.0, weight_decay=0.0)
    done = passes(method, views(noise, step, num_crops=num_crops), step)
    optimizer.step()
    optimizer.zero_grad()
    method.remember(done.batch, done.rows)
    return done


def assert_any_micro_batch_gives_the_same_run(
    build: Callable[[int], Method[Any]], noise: Noise, micro: int, num_crops: int
) -> None:
    """Losses, weights, gradients' effect and BatchNorm statistics of three steps, `micro` groups at a time or all."""
    whole = build(0)
    parts = build(micro)
    for step in range(3):
        one, several = (step_of(method, noise, step, num_crops=num_crops) for method in (whole, parts))
        assert abs(several.total - one.total) < 1e-10
        for name, rows in one.rows.items():
            assert torch.allclose(several.rows[name], rows, rtol=1e-9, atol=1e-12), name
    for name, value in whole.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.allclose(parts.state_dict()[name], value, rtol=1e-9, atol=1e-12), name
