"""BatchNorm whose statistics are shared by a group of images, not by whatever happens to be in the batch.

The paper's 8-GPU run normalises 8 groups of 32 images. A forward pass here may hold several such groups in
consecutive rows; each is normalised on its own, whoever computes it.

Shapes: g groups in this forward, N images a group; input (g*N, C, ...).
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GroupedBatchNorm(_BatchNorm):
    """BatchNorm over each of `num_groups` equal chunks of rows; in eval mode an ordinary BatchNorm.

    The state is that of `nn.BatchNorm2d`: names and (C,) shapes, so torchvision loads it. Running statistics follow
    the first chunk alone and only while `updates_statistics` is set: in the official run DistributedDataParallel
    broadcasts rank 0's buffers before each forward, so what is saved there is what group 0 saw.
    """

    num_groups: int = 1
    updates_statistics: bool = True

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
        # Chunk by chunk costs nothing against one pass over the batch: the working set stays in cache.
        chunks = [
            self._normalize(chunk, tracks=self.updates_statistics and number == 0)
            for number, chunk in enumerate(input.chunk(self.num_groups))
        ]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def _normalize(self, chunk: Tensor, *, tracks: bool) -> Tensor:
        momentum = 0.0 if self.momentum is None else self.momentum
        if tracks and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average, as nn.BatchNorm2d does
                momentum = 1.0 / float(self.num_batches_tracked)
        mean, var = (self.running_mean, self.running_var) if tracks else (None, None)
        return F.batch_norm(chunk, mean, var, self.weight, self.bias, True, momentum, self.eps)


def convert_batchnorm(module: nn.Module) -> nn.Module:
    """Replace each BatchNorm inside `module` by a GroupedBatchNorm with the same state, in place.

    Returns:
        `module`, or its replacement when it is itself a BatchNorm.

    """
    if isinstance(module, _BatchNorm) and not isinstance(module, GroupedBatchNorm):
        grouped = GroupedBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        grouped.load_state_dict(module.state_dict())
        grouped.train(module.training)
        return grouped
    for name, child in module.named_children():
        setattr(module, name, convert_batchnorm(child))
    return module


@contextlib.contextmanager
def batchnorm_groups(module: nn.Module, num_groups: int, *, updates_statistics: bool) -> Iterator[None]:
    """Within the context, forwards of `module` hold `num_groups` BatchNorm groups in consecutive rows."""
    layers = [layer for layer in module.modules() if isinstance(layer, GroupedBatchNorm)]
    for layer in layers:
        layer.num_groups, layer.updates_statistics = num_groups, updates_statistics
    try:
        yield
    finally:
        for layer in layers:
            layer.num_groups, layer.updates_statistics = 1, True
