"""What a training step computes, moves and holds, counted by running it on tensors that have shapes but no memory."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
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
    """One rank's part of a step, without the loss."""

    num_images: int
    num_micro_batches: int
    num_parameters: int
    """Of one encoder."""
    num_trained: int
    """Parameters that take a gradient, in all encoders."""
    weight_bytes: int
    """Parameters and buffers of all encoders."""
    flops: int
    """Of all forward and backward passes; a multiply-add is 2."""
    moved_bytes: int
    """Read and written by all operations, as if no cache kept anything."""
    num_operations: int
    activation_bytes: int
    """Most held at once beside weights, gradients and the whole batch of views."""


class _Watch(TorchDispatchMode):
    """Counts operations, the bytes they touch, and the most that is alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_operations = self.moved_bytes = self.alive_bytes = self.peak_bytes = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def forget(self, tensors: Iterator[Tensor]) -> None:
        """Leave these out: they were there before."""
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
    """Count rank 0's part of a step: its share of the global batch, a micro-batch at a time.

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
        watch.forget(iter([*encoder.parameters(), *encoder.buffers()]))
        # One BatchNorm group stands for all: the others' loop would be counted operation by operation.
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
        moved_bytes=round(watch.moved_bytes * portions),
        num_operations=round(watch.num_operations * portions),
        activation_bytes=max(0, watch.peak_bytes - sum(4 * parameter.numel() for parameter in trained)),
    )


def _size_of(*modules: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _give_shapes_a_device(encoder: nn.Module) -> None:
    """Put fake CPU tensors, which autocast knows, in the place of meta tensors, with which timm can build."""
    for module in encoder.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape), parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _forward_and_backward(
    encoder: Encoder, views: Tensor, local: Tensor, passes: Passes, precision: str, *, embeds_again: bool
) -> None:
    """What needs no gradient first, then the rest; each pass begins with a copy, as PixelNormalize does."""
    trained = [*[views] * passes.trained_views, *([local] if len(local) else [])]
    with _autocast(precision):
        with torch.no_grad():
            for pixels in trained if embeds_again else []:
                encoder(pixels * 1.0)
            for _ in range(passes.key_views):
                F.normalize(encoder.head(encoder.backbone(views * 1.0)), dim=1)
        embeddings = [encoder(pixels * 1.0) for pixels in trained]
    torch.cat(embeddings).float().sum().backward()  # all are held when the first goes back


@contextmanager
def _autocast(precision: str) -> Iterator[None]:
    if precision in AUTOCAST_TYPES:
        with torch.autocast("cpu", dtype=AUTOCAST_TYPES[precision], cache_enabled=False):
            yield
    else:
        yield
