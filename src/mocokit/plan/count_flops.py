"""Count the operations, bytes and memory of a training step by running it on fake tensors: shapes without memory."""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mocokit.config.schema import Config
from mocokit.engine.precision import AUTOCAST_TYPES
from mocokit.methods import method_of
from mocokit.methods.contract import Passes
from mocokit.methods.groups import GroupLayout
from mocokit.nets.encoder import Encoder
from mocokit.nets.grouped_batchnorm import batchnorm_groups
from mocokit.run.build import build_encoder


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """Counts of one rank's part of a step, without the loss."""

    num_images: int
    num_micro_batches: int
    num_parameters: int
    """Parameters of one encoder."""
    num_trained: int
    """Parameters that take a gradient, in all encoders."""
    weight_bytes: int
    """Bytes of the parameters and buffers of all encoders."""
    flops: int
    """Operations of all forward and backward passes; a multiply-add counts as 2."""
    conv_flops: int
    """The part of `flops` that convolutions do."""
    moved_bytes: int
    """Bytes that all operations read and write, as if there were no cache."""
    num_operations: int
    """Calls of torch operations that compute; views of tensors don't count."""
    activation_bytes: int
    """Largest number of bytes alive at once, without weights, gradients and the whole batch of views."""


class _Watch(TorchDispatchMode):
    """Counts operations, the bytes that they read and write, and the most bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_operations = 0
        self.moved_bytes = 0
        self.alive_bytes = 0
        self.peak_bytes = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors as holding no memory: they exist before the step."""
        for tensor in tensors:
            self._enter(tensor, size=0)

    def _enter(self, tensor: Tensor, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        number = id(storage)
        if number in self._seen:
            return
        size = storage.nbytes() if size is None else size

        def leave(_storage: object) -> None:
            self._seen.pop(number, None)
            self.alive_bytes -= size

        self._seen[number] = weakref.ref(storage, leave)
        self.alive_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not func.is_view:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.num_operations += 1
            self.moved_bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))
        for tensor in outputs:
            self._enter(tensor)
        return result


def count_step(config: Config, *, world_size: int = 1) -> StepCounts:
    """Count rank 0's part of a step: one micro-batch is run, and scaled up to the rank's share of the global batch.

    Raises:
        ValueError: A setting does not allow the run.

    """
    layout = GroupLayout(
        bn_groups=config.method.bn_groups, world_size=world_size, micro_groups=config.method.micro_groups
    )
    micro_batches = layout.micro_batches(config.data.global_batch_size)
    first = micro_batches[0]
    passes = method_of(config.method).passes(config.method)
    rows = first.rows.stop - first.rows.start
    with torch.device("meta"):
        encoder = build_encoder(config).train()
    with FakeTensorMode():
        _give_shapes_a_device(encoder)
        views = torch.empty(rows, 3, config.data.image_size, config.data.image_size)
        augment = config.augment
        local = torch.empty(rows * augment.local_crops, 3, augment.local_size, augment.local_size)
        flops = FlopCounterMode(display=False)
        watch = _Watch()
        watch.ignore([*encoder.parameters(), *encoder.buffers()])
        # One BatchNorm group stands for all of them: the loop over groups would be counted operation by operation.
        with flops, watch, batchnorm_groups(encoder, 1, updates_statistics=True):
            embeds_again = passes.embeds_again(len(micro_batches))
            _forward_and_backward(encoder, views, local, passes, config.run.precision, embeds_again=embeds_again)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    images = len(layout.own_rows(config.data.global_batch_size))
    portions = images / rows
    return StepCounts(
        num_images=images,
        num_micro_batches=len(micro_batches),
        num_parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        num_trained=passes.num_trained * sum(parameter.numel() for parameter in trained),
        weight_bytes=_size_of(encoder) * passes.num_trained
        + _size_of(encoder.backbone, encoder.head) * (passes.key_views > 0),
        flops=round(flops.get_total_flops() * portions),
        conv_flops=round(_conv_flops(flops) * portions),
        moved_bytes=round(watch.moved_bytes * portions),
        num_operations=round(watch.num_operations * portions),
        activation_bytes=max(0, watch.peak_bytes - sum(4 * parameter.numel() for parameter in trained)),
    )


def _conv_flops(counter: FlopCounterMode) -> int:
    counts = counter.get_flop_counts().get("Global", {})
    return sum(int(count) for operation, count in counts.items() if "convolution" in str(operation))


def _size_of(*modules: nn.Module) -> int:
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _give_shapes_a_device(encoder: nn.Module) -> None:
    """Replace meta tensors by fake CPU tensors: timm can build a model on "meta" only, autocast needs a real device."""
    for module in encoder.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape), parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _forward_and_backward(
    encoder: Encoder, views: Tensor, local: Tensor, passes: Passes, precision: str, *, embeds_again: bool
) -> None:
    """Run the passes of one micro-batch: first those without gradient, then those with, then backward.

    Each pass starts by copying its pixels, as PixelNormalize does.
    """
    trained = [*[views] * passes.trained_views, *([local] if len(local) else [])]
    dtype = AUTOCAST_TYPES.get(precision)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None, cache_enabled=False):
        with torch.no_grad():
            for pixels in trained if embeds_again else []:
                encoder(pixels * 1.0)
            for _ in range(passes.key_views):
                F.normalize(encoder.head(encoder.backbone(views * 1.0)), dim=1)
        embeddings = [encoder(pixels * 1.0) for pixels in trained]
    torch.cat(embeddings).float().sum().backward()  # the backward pass starts when all embeddings are held
