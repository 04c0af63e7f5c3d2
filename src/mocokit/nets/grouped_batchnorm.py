"""BatchNorm whose statistics are shared by a group of images, not by whatever happens to be in the batch.

The paper's 8-GPU run normalises 8 groups of 32 images. A forward pass here may hold several such groups in
consecutive rows; each is normalised on its own, whoever computes it. A group may also span several ranks, which then
put their statistics together, forwards and backwards (torch's SyncBatchNorm does so on GPUs only).

Shapes: g groups in this forward, N images a group (or this rank's part of it); input (g*N, C, ...); r ranks a group.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mocokit import distributed


class GroupedBatchNorm(_BatchNorm):
    """BatchNorm over each of `num_groups` equal chunks of rows; in eval mode an ordinary BatchNorm.

    The state is that of `nn.BatchNorm2d`: names and (C,) shapes, so torchvision loads it. Running statistics follow
    the first chunk alone and only while `updates_statistics` is set: in the official run DistributedDataParallel
    broadcasts rank 0's buffers before each forward, so what is saved there is what group 0 saw.
    """

    num_groups: int = 1
    updates_statistics: bool = True
    ranks: range = range(1)
    """Ranks that share the one group of this forward."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002, the base class's name
        if input.dim() < 2:
            raise ValueError(f"input: BatchNorm needs (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise (g*N, C, ...) group by group; same shape out."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        if len(input) % self.num_groups:
            raise ValueError(f"input: {len(input)} rows do not split into {self.num_groups} BatchNorm groups")
        momentum = self._count()
        tracks = self.updates_statistics
        mean, var = (self.running_mean, self.running_var) if tracks else (None, None)
        if self.num_groups == 1 and len(self.ranks) == 1:
            return F.batch_norm(input, mean, var, self.weight, self.bias, True, momentum, self.eps)
        weight, bias = self._scale_and_shift(input)
        if len(self.ranks) > 1:
            across: Tensor = self._across_ranks(input, weight, bias, momentum)
            return across
        if torch.compiler.is_compiling():
            return self._in_formulas(input, weight, bias, momentum)
        normalized: Tensor = _NormalizeGroups.apply(input, weight, bias, mean, var, self.num_groups, momentum, self.eps)
        return normalized

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(C,) weight and bias: the layer's, or 1 and 0."""
        if self.affine:
            return self.weight, self.bias
        dtype = torch.promote_types(x.dtype, torch.float32)
        return x.new_ones(self.num_features, dtype=dtype), x.new_zeros(self.num_features, dtype=dtype)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _across_ranks(self, x: Tensor, weight: Tensor, bias: Tensor, momentum: float) -> Tensor:
        """Normalise this rank's part of the one group that `ranks` share: no compiler sees the collectives."""
        assert self.num_groups == 1, "a group that spans ranks is the only one in a forward"
        return self._in_formulas(x, weight, bias, momentum)

    def _in_formulas(self, x: Tensor, weight: Tensor, bias: Tensor, momentum: float) -> Tensor:
        """Normalise this rank's groups, or its part of one."""
        normalized: Tensor
        normalized, means, variances = _NormalizeInFormulas.apply(
            x.unflatten(0, (self.num_groups, -1)), weight, bias, self.ranks, self.eps
        )
        if self.updates_statistics and self.running_mean is not None and self.running_var is not None:
            count = x.numel() // x.shape[1] // self.num_groups * len(self.ranks)
            unbiased = variances[0] * (count / (count - 1))  # as torch keeps it
            self.running_mean.lerp_(means[0].to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return normalized.flatten(0, 1)

    def _count(self) -> float:
        """Count the batch if it is tracked; the weight of its statistics."""
        if self.updates_statistics and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average, as nn.BatchNorm2d does
                return 1.0 / float(self.num_batches_tracked)
        return self.momentum or 0.0


class GroupedBatchNormAct(GroupedBatchNorm):
    """The same, followed by the `drop` and `act` that timm keeps inside its BatchNormAct2d."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise (g*N, C, ...) group by group and activate; same shape out."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


class _NormalizeGroups(torch.autograd.Function):
    """Batch normalization of each chunk of rows, written in place into one result: no copies to put chunks together.

    Chunk by chunk costs next to nothing against one pass over the batch: the working set stays in cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        num_groups: int,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """Normalised rows; `mean` and `var`, if given, follow the first chunk."""
        result = torch.empty_like(x)
        saved: list[Tensor] = []
        for number, (rows, out) in enumerate(zip(x.chunk(num_groups), result.chunk(num_groups), strict=True)):
            running = (mean, var) if number == 0 else (None, None)
            statistics = torch.empty_like(weight), torch.empty_like(weight)  # (C,) mean, 1 / standard deviation
            torch.ops.aten.native_batch_norm.out(
                rows,
                weight,
                bias,
                *running,
                True,
                momentum,
                eps,
                out=out,
                save_mean=statistics[0],
                save_invstd=statistics[1],
            )
            saved += statistics
        ctx.save_for_backward(x, weight, *saved)
        ctx.eps = eps
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, chunk by chunk, and of weight and bias, summed over chunks."""
        x, weight, *saved = ctx.saved_tensors
        num_groups = len(saved) // 2
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight)
        grad_bias = torch.zeros_like(weight)
        own_weight = torch.empty_like(weight)
        own_bias = torch.empty_like(weight)
        chunks = zip(x.chunk(num_groups), grad.chunk(num_groups), grad_x.chunk(num_groups), strict=True)
        for number, (rows, grad_rows, out) in enumerate(chunks):
            torch.ops.aten.native_batch_norm_backward.out(
                grad_rows,
                rows,
                weight,
                None,
                None,
                *saved[2 * number : 2 * number + 2],
                True,
                ctx.eps,
                [True] * 3,
                out0=out,
                out1=own_weight,
                out2=own_bias,
            )
            grad_weight += own_weight
            grad_bias += own_bias
        return grad_x, grad_weight, grad_bias, None, None, None, None, None


class _NormalizeInFormulas(torch.autograd.Function):
    """The same in plain formulas: for torch.compile, which fuses them with what follows, and for a group of ranks.

    The ranks of a group hold equally many rows each; two collectives, both of (R, 2, 1, C). Every rank takes part in
    both and picks its own group's entries, so no process groups are made.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, ranks: range, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised (g, N, C, ...), and the groups' means and biased variances (g, C)."""
        exact = _exact(x)
        dims = [dim for dim in range(x.dim()) if dim not in (0, 2)]
        var, mean = torch.var_mean(exact, dims, correction=0)  # (g, C)
        if len(ranks) > 1:
            means, variances = _of_ranks(torch.stack([mean, var]), ranks)  # (r, 1, C)
            mean = means.mean(dim=0)
            var = (variances + (means - mean).square()).mean(dim=0)  # within ranks, and between them
        shape = (len(x), 1, -1) + (1,) * (x.dim() - 3)
        scale = (var + eps).rsqrt()  # (g, C)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.ranks = ranks
        ctx.shape = shape
        ctx.dims = dims
        normalized = (exact - mean.view(shape)) * (scale * weight).view(shape) + bias.view(1, *shape[1:])
        ctx.mark_non_differentiable(mean, var)
        return normalized.to(x.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, through the groups' statistics, and of this rank's weight and bias."""
        x, weight, mean, scale = ctx.saved_tensors
        shape = ctx.shape
        dims = ctx.dims
        grad = _exact(grad)  # (g, N, C, ...)
        x_hat = (_exact(x) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([grad.sum(dims), (grad * x_hat).sum(dims)])  # (2, g, C) d bias, d weight
        total = _of_ranks(own, ctx.ranks).sum(dim=1) if len(ctx.ranks) > 1 else own
        mean_grad, mean_product = total / (x_hat.numel() // mean.numel() * len(ctx.ranks))  # (g, C) each
        centered = grad - mean_grad.view(shape) - x_hat * mean_product.view(shape)
        grad_x = (centered * (scale * weight).view(shape)).to(x.dtype)
        grad_bias, grad_weight = own.sum(dim=1).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None, None


def _exact(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _of_ranks(values: Tensor, ranks: range) -> Tensor:
    """(k, ...) of this rank -> (k, r, ...) of each of `ranks`."""
    gathered = distributed.all_gather_rows(values[None], [1] * distributed.world_size())  # (R, k, ...)
    return gathered[ranks.start : ranks.stop].transpose(0, 1)


def convert_batchnorm(module: nn.Module) -> nn.Module:
    """Replace each BatchNorm inside `module` by a GroupedBatchNorm with the same state, in place.

    Returns:
        `module`, or its replacement when it is itself a BatchNorm.

    Raises:
        ValueError: A BatchNorm with parts of its own, which are not timm's `drop` and `act`.

    """
    if isinstance(module, _BatchNorm) and not isinstance(module, GroupedBatchNorm):
        parts = dict(module.named_children())
        if parts and set(parts) != {"drop", "act"}:
            raise ValueError(
                f"model.arch: its {type(module).__name__} is not known to mocokit; choose another backbone"
            )
        grouped = (GroupedBatchNormAct if parts else GroupedBatchNorm)(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        for name, part in parts.items():
            grouped.add_module(name, part)
        grouped.load_state_dict(module.state_dict())
        for parameter, original in zip(grouped.parameters(False), module.parameters(False), strict=True):
            parameter.requires_grad_(original.requires_grad)
        grouped.train(module.training)
        return grouped
    for name, child in module.named_children():
        setattr(module, name, convert_batchnorm(child))
    return module


def has_batchnorm(module: nn.Module) -> bool:
    """Whether anything inside `module` is normalised over a batch."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


@contextlib.contextmanager
def batchnorm_groups(
    module: nn.Module, num_groups: int, *, updates_statistics: bool, ranks: range = range(1)
) -> Iterator[None]:
    """Within the context, forwards of `module` hold `num_groups` BatchNorm groups in consecutive rows.

    Args:
        module: A network whose BatchNorm layers were converted.
        num_groups: g; 1 where several ranks share the group.
        updates_statistics: Whether running statistics follow the first group.
        ranks: Ranks that hold equal parts of the group.

    """
    layers = [layer for layer in module.modules() if isinstance(layer, GroupedBatchNorm)]
    for layer in layers:
        layer.num_groups = num_groups
        layer.updates_statistics = updates_statistics
        layer.ranks = ranks
    try:
        yield
    finally:
        for layer in layers:
            layer.num_groups = 1
            layer.updates_statistics = True
            layer.ranks = range(1)
