"""BatchNorm whose statistics are those of a group of images, whatever the batch of the forward pass.

The paper's 8-GPU run normalises 8 groups of 32 images, one on each GPU. A forward pass here may hold several such
groups in consecutive rows, and normalises each by itself. So the number of groups, and with it the result, does not
depend on the number of GPUs. The opposite case exists too: one group may span several ranks, which then combine their
statistics, forward and backward. (torch's SyncBatchNorm does that on GPUs only.)

Three implementations of the same formulas; `GroupedBatchNorm.forward` picks one:

* one group on one rank: `F.batch_norm`, bit-equal to torch;
* several groups, eager: `_ChunkedBatchNorm`, torch's kernel on each group;
* torch.compile, or a group over several ranks: `_FormulaBatchNorm`, plain tensor operations.

Shapes: g groups in this forward; N images a group (or this rank's part of one group); C channels; input (g*N, C, ...);
R ranks in all, r of them in a group.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mocokit import distributed


class GroupedBatchNorm(_BatchNorm):
    """BatchNorm over each of `num_groups` equal chunks of rows; in eval mode an ordinary BatchNorm.

    The state has the names and (C,) shapes of `nn.BatchNorm2d`, so torchvision loads it.

    Running statistics follow the first group only, and only while `updates_statistics` is True. This is what the
    official run saves: DistributedDataParallel broadcasts rank 0's buffers before each forward, so the saved ones
    have seen group 0 only.

    `batchnorm_groups` sets the three attributes for the forwards in its block.
    """

    num_groups: int = 1
    updates_statistics: bool = True
    ranks: range = range(1)
    """Ranks that share the one group of this forward; `range(1)`: the groups of this forward are this rank's alone."""
    row_counts: tuple[int, ...] = ()
    """Rows that each of `ranks` holds of its group; empty: all hold equally many."""

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
        momentum = self._count_batch()
        mean, var = (self.running_mean, self.running_var) if self.updates_statistics else (None, None)  # (C,) each
        if self.num_groups == 1 and len(self.ranks) == 1:
            return F.batch_norm(input, mean, var, self.weight, self.bias, True, momentum, self.eps)
        weight, bias = self._scale_and_shift(input)
        if len(self.ranks) > 1 or torch.compiler.is_compiling():
            assert len(self.ranks) == 1 or self.num_groups == 1, "a group that spans ranks is a forward's only one"
            return self._by_formulas(input, weight, bias, momentum)
        normalized: Tensor = _ChunkedBatchNorm.apply(
            input, weight, bias, mean, var, self.num_groups, momentum, self.eps
        )
        return normalized

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (C,) weight and bias: the layer's own, or 1 and 0 for a layer without them."""
        if self.affine:
            return self.weight, self.bias
        dtype = torch.promote_types(x.dtype, torch.float32)
        return x.new_ones(self.num_features, dtype=dtype), x.new_zeros(self.num_features, dtype=dtype)

    def _by_formulas(self, x: Tensor, weight: Tensor, bias: Tensor, momentum: float) -> Tensor:
        """Normalise (g*N, C, ...), g groups or this rank's part of one, and update the running statistics."""
        normalized: Tensor
        normalized, means, variances = _FormulaBatchNorm.apply(  # (g, N, C, ...), (g, C), (g, C)
            x.unflatten(0, (self.num_groups, len(x) // self.num_groups)),
            weight,
            bias,
            self.ranks,
            self.row_counts,
            self.eps,
        )
        if self.updates_statistics and self.running_mean is not None and self.running_var is not None:
            # Like torch: normalise with the biased variance (divided by the count n of values in a channel of a
            # group), but keep a running average of the unbiased one (n - 1).
            rows = sum(self.row_counts) or len(x) // self.num_groups * len(self.ranks)
            count = rows * math.prod(x.shape[2:])
            unbiased = variances[0] * (count / (count - 1))  # (C,) of group 0
            self.running_mean.lerp_(means[0].to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return normalized.flatten(0, 1)  # (g*N, C, ...)

    def _count_batch(self) -> float:
        """Count this batch if statistics are tracked; return its weight in the running statistics."""
        if self.updates_statistics and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average, as nn.BatchNorm2d has it
                return 1.0 / float(self.num_batches_tracked)
        return self.momentum or 0.0


class GroupedBatchNormAct(GroupedBatchNorm):
    """GroupedBatchNorm followed by the `drop` and `act` layers that timm keeps inside its BatchNormAct2d."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise (g*N, C, ...) group by group, then apply drop and act; same shape out."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


class _ChunkedBatchNorm(torch.autograd.Function):
    """torch's BatchNorm kernel on each group in turn, each writing into its rows of one preallocated result.

    So no copy is needed to concatenate the groups. The loop costs next to nothing against one pass over the whole
    batch, because the rows of one group stay in the cache.
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
        """Return the normalised (g*N, C, ...); the running `mean` and `var`, if given, follow the first group."""
        result = torch.empty_like(x)  # (g*N, C, ...)
        saved: list[Tensor] = []  # 2g of (C,)
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
        """Return the gradients of x, group by group, and of weight and bias, summed over the groups."""
        x, weight, *saved = ctx.saved_tensors
        num_groups = len(saved) // 2
        grad_x = torch.empty_like(x)  # (g*N, C, ...)
        grad_weight = torch.zeros_like(weight)  # (C,)
        grad_bias = torch.zeros_like(weight)
        own_weight = torch.empty_like(weight)  # (C,) of one group; the kernel overwrites it each time
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


class _FormulaBatchNorm(torch.autograd.Function):
    """BatchNorm in plain tensor operations: torch.compile fuses them, and a group may span ranks.

    There is one all-gather in the forward and one in the backward, of (2, 1, C) float32 numbers from each rank:
    R * 8 * C bytes, 128 KiB for C = 2048 and R = 8. Every rank of the run takes part and picks the entries of its own
    group, so no process groups are needed. The ranks of a group hold equally many rows each, or `row_counts`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, ranks: range, row_counts: tuple[int, ...], eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised (g, N, C, ...), and the (g, C) means and biased variances of the groups."""
        exact = _at_least_float32(x)  # (g, N, C, ...)
        dims = [dim for dim in range(x.dim()) if dim not in (0, 2)]  # all but groups and channels
        if x.numel():
            var, mean = torch.var_mean(exact, dims, correction=0)  # (g, C) each
        else:  # this rank holds no row of the group; what it gathers has weight 0
            var = mean = exact.new_zeros(len(x), x.shape[2])
        if len(ranks) > 1:
            means, variances = _gather_from(ranks, torch.stack([mean, var]))  # (2, r, 1, C) -> (r, 1, C) each
            # Total variance = mean of the variances within ranks + variance of the means between ranks, each rank
            # weighted by its rows. (E[x^2] - E[x]^2 would lose digits to cancellation.)
            mean = _mean_over_ranks(means, row_counts)  # (1, C)
            var = _mean_over_ranks(variances + (means - mean).square(), row_counts)  # (1, C)
        shape = (len(x), 1, -1) + (1,) * (x.dim() - 3)  # broadcasts (g, C) over (g, N, C, ...)
        scale = (var + eps).rsqrt()  # (g, C)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.ranks = ranks
        ctx.num_rows = sum(row_counts) or x.shape[1] * len(ranks)
        ctx.shape = shape
        ctx.dims = dims
        normalized = (exact - mean.view(shape)) * (scale * weight).view(shape) + bias.view(1, *shape[1:])
        ctx.mark_non_differentiable(mean, var)
        return normalized.to(x.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, through the statistics of the whole group, and of this rank's weight and bias.

        With y = x_hat * weight + bias and means over all n values of a channel in the group (all of its ranks):
            d x = weight / std * (dy - mean(dy) - x_hat * mean(dy * x_hat))
        The gradients of weight and bias stay this rank's own: they are summed over ranks with all others.
        """
        x, weight, mean, scale = ctx.saved_tensors
        shape = ctx.shape
        dims = ctx.dims
        grad = _at_least_float32(grad)  # (g, N, C, ...)
        x_hat = (_at_least_float32(x) - mean.view(shape)) * scale.view(shape)  # (g, N, C, ...)
        own = torch.stack([grad.sum(dims), (grad * x_hat).sum(dims)])  # (2, g, C): d bias, d weight
        total = _gather_from(ctx.ranks, own).sum(dim=1) if len(ctx.ranks) > 1 else own  # (2, g, C) of the whole group
        mean_grad, mean_product = total / (ctx.num_rows * math.prod(x.shape[3:]))  # (g, C) each
        centered = grad - mean_grad.view(shape) - x_hat * mean_product.view(shape)  # (g, N, C, ...)
        grad_x = (centered * (scale * weight).view(shape)).to(x.dtype)
        grad_bias, grad_weight = own.sum(dim=1).to(weight.dtype)  # (C,) each
        return grad_x, grad_weight, grad_bias, None, None, None


def _mean_over_ranks(values: Tensor, row_counts: tuple[int, ...]) -> Tensor:
    """Return the mean (1, C) of (r, 1, C) values, each weighted by the rows of its rank."""
    if not row_counts:
        return values.mean(dim=0)
    weights = values.new_tensor(row_counts) / sum(row_counts)  # (r,)
    return (values * weights.view(-1, 1, 1)).sum(dim=0)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _gather_from(ranks: range, values: Tensor) -> Tensor:
    """Gather this rank's (k, ...) `values` from all `ranks`: (k, r, ...)."""
    gathered: Tensor = _gather_statistics(values, distributed.world_size())  # (R, k, ...)
    return gathered[ranks.start : ranks.stop].transpose(0, 1)  # (k, r, ...)


@torch.library.custom_op("mocokit::gather_statistics", mutates_args=())
def _gather_statistics(values: Tensor, num_ranks: int) -> Tensor:
    """Gather the (k, ...) `values` of all ranks: (R, k, ...). One node of a compiled graph, which need not break."""
    return distributed.all_gather_rows(values[None], [1] * num_ranks)


@_gather_statistics.register_fake
def _shape_of_gathered(values: Tensor, num_ranks: int) -> Tensor:
    return values.new_empty((num_ranks, *values.shape))


def convert_batchnorm(module: nn.Module) -> nn.Module:
    """Replace each BatchNorm inside `module` by a GroupedBatchNorm with the same state, in place.

    Returns:
        `module`, or its replacement if it is itself a BatchNorm.

    Raises:
        ValueError: A BatchNorm contains layers other than timm's `drop` and `act`.

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
    """Return True if `module` contains a BatchNorm layer."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


@contextlib.contextmanager
def batchnorm_groups(
    module: nn.Module,
    num_groups: int,
    *,
    updates_statistics: bool,
    ranks: range = range(1),
    row_counts: tuple[int, ...] = (),
) -> Iterator[None]:
    """Context manager in which forwards of `module` hold `num_groups` BatchNorm groups in consecutive rows.

    Args:
        module: A network after `convert_batchnorm`.
        num_groups: g; must be 1 if several ranks share the group.
        updates_statistics: True if running statistics follow the first group.
        ranks: Ranks that hold parts of the group; a range of length 1 if each rank has whole groups.
        row_counts: Rows that each of `ranks` holds; empty: all hold equally many.

    """
    layers = [layer for layer in module.modules() if isinstance(layer, GroupedBatchNorm)]
    for layer in layers:
        layer.num_groups = num_groups
        layer.updates_statistics = updates_statistics
        layer.ranks = ranks
        layer.row_counts = row_counts
    try:
        yield
    finally:
        for layer in layers:
            layer.num_groups = 1
            layer.updates_statistics = True
            layer.ranks = range(1)
            layer.row_counts = ()


def batchnorm_of_ranks(module: nn.Module, row_counts: Sequence[int]) -> contextlib.AbstractContextManager[None]:
    """Return the context manager in which the rows of all ranks are one BatchNorm group; rank r has row_counts[r]."""
    return batchnorm_groups(
        module, 1, updates_statistics=True, ranks=range(len(row_counts)), row_counts=tuple(row_counts)
    )
