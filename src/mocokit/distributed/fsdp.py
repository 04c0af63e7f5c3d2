"""Encoders in parts: each rank keeps a part of every parameter, of its gradient and of its optimizer state.

torch's FSDP2 does the work; here is what a run needs around it. A block's parameters are put together when the block
computes, and let go of afterwards. Checkpoints are put together too, so that they are the same single file that any
number of ranks, sharded or not, resumes from.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mocokit.distributed import collectives


def shard(encoder: nn.Module, device: torch.device) -> None:
    """Split `encoder`, whole and the same on all ranks, in place; each of its repeated blocks computes by itself.

    Raises:
        ValueError: This torch's FSDP2 can't add up without scaling.

    """
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ValueError(f"run.shard=True: needs a newer torch than {torch.__version__}")
    encoder.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other
    mesh = init_device_mesh(device.type, (collectives.world_size(),))
    for block in _blocks_of(encoder):
        fully_shard(block, mesh=mesh)
    fully_shard(encoder, mesh=mesh, reshard_after_forward=True)  # keys have no backward pass that would let go
    for module in sharded_modules(encoder):
        module.set_gradient_divide_factor(1.0)  # sums over ranks, as everywhere here
        module.set_force_sum_reduction_for_comms(enable=True)  # and no scaled ones, which gloo does not know


def _blocks_of(encoder: nn.Module) -> Iterator[nn.Module]:
    """Children of lists whose entries are of one kind: a ViT's blocks, a ResNet's residual blocks."""
    for module in encoder.modules():
        children = list(module.children())
        if (
            isinstance(module, nn.Sequential | nn.ModuleList)
            and len(children) > 1
            and len(set(map(type, children))) == 1
        ):
            yield from (child for child in children if next(child.parameters(), None) is not None)


class Modules(Protocol):
    """What is asked here of a method or an encoder; `nn.Module` has it."""

    def modules(self) -> Iterator[nn.Module]:
        """Itself and all that is inside."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters."""
        ...


def sharded_modules(module: Modules) -> list[FSDPModule]:
    """Those inside `module` that FSDP2 splits; none on a single rank, or unless run.shard asks for it."""
    return [child for child in module.modules() if isinstance(child, FSDPModule)]


def is_split(value: object) -> bool:
    """Whether ranks hold parts of it."""
    return isinstance(value, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, put together when ranks hold parts of it; then all must call this."""
    if not isinstance(tensor, DTensor):
        return tensor
    with collectives.together():
        full: Tensor = tensor.full_tensor()
    return full


def gathered(state: Any) -> Any:
    """`state`, nested as it is, with whole tensors; those that ranks hold parts of in the main rank's host memory.

    Elsewhere they come out empty.
    """
    if isinstance(state, DTensor):
        full = whole(state.detach())
        return full.cpu() if collectives.is_main() else full.new_empty(0)
    if isinstance(state, dict):
        copied = state.copy()  # keeps the versions that torch attaches to a state dict
        copied.update((name, gathered(value)) for name, value in state.items())
        return copied
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    return state


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """The whole `tensor` split as `model` is, which may be whole; nothing travels."""
    if not isinstance(model, DTensor) or tensor.shape != model.shape:
        return tensor
    return distribute_tensor(
        tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None
    )  # every rank has read all of it


def load_method_state(method: nn.Module, state: dict[str, Any]) -> None:
    """Load whole tensors into a method that may be split."""
    own = method.state_dict()
    method.load_state_dict({name: like(value, own[name]) if name in own else value for name, value in state.items()})


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load whole tensors into the optimizer of a method that may be split."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    split = {
        number: {
            name: like(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": split})
