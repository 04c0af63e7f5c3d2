"""Sharded encoders (torch's FSDP2): each rank keeps a shard of every parameter, its gradient and its optimizer state.

FSDP2 gathers the parameters of a block just before the block computes, and frees them afterwards. So with R ranks a
rank holds 1/R of all of them, and the whole parameters only of the blocks that compute at the moment. Each forward and
each backward of a block all-gathers its parameters; the last backward of a step reduce-scatters the gradients.

Checkpoints are gathered into whole tensors: one file, the same as of an unsharded run, that any number of ranks,
sharded or not, resumes from.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mocokit.distributed import collectives


def shard(encoder: nn.Module, device: torch.device) -> None:
    """Shard `encoder` in place over all ranks, each of its repeated blocks as a unit of its own.

    Args:
        encoder: Unsharded network with the same weights on all ranks.
        device: Device of this rank.

    Raises:
        ValueError: This torch's FSDP2 can't sum gradients without scaling them.

    """
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ValueError(f"run.shard=True: needs a newer torch than {torch.__version__}")
    encoder.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other
    mesh = init_device_mesh(device.type, (collectives.world_size(),))
    for block in _blocks_of(encoder):
        fully_shard(block, mesh=mesh)
    # The rest of the encoder (stem, head) is one more unit, the root. By default FSDP2 keeps a root's parameters whole
    # from its forward until its backward. The key encoder has no backward, so they must be freed after each forward.
    fully_shard(encoder, mesh=mesh, reshard_after_forward=True)
    for module in sharded_modules(encoder):
        module.set_gradient_divide_factor(1.0)  # sum over ranks, not mean: losses are divided by the global batch
        module.set_force_sum_reduction_for_comms(enable=True)  # a plain sum; gloo has no reduction that also scales


def _blocks_of(encoder: nn.Module) -> Iterator[nn.Module]:
    """Yield the repeated blocks: a ViT's blocks, a ResNet's residual blocks.

    These are the children of every Sequential or ModuleList with two or more children, all of one type.
    """
    for module in encoder.modules():
        children = list(module.children())
        if (
            isinstance(module, nn.Sequential | nn.ModuleList)
            and len(children) > 1
            and len(set(map(type, children))) == 1
        ):
            yield from (child for child in children if next(child.parameters(), None) is not None)


def sharded_modules(module: nn.Module) -> list[FSDPModule]:
    """Return the modules inside `module` that FSDP2 shards; empty on a single rank and without run.shard."""
    return [child for child in module.modules() if isinstance(child, FSDPModule)]


def is_sharded(value: object) -> bool:
    """Return True if `value` is a tensor of which each rank holds a shard."""
    return isinstance(value, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor, without communication; an unsharded one as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor on every rank; an unsharded one as it is.

    All ranks must call this for a sharded tensor: it is one collective.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    with collectives.together():
        full: Tensor = tensor.full_tensor()
    return full


def gather_state(state: Any) -> Any:
    """Return `state`, nested as it is, with whole tensors in place of sharded ones; all ranks must call this.

    The main rank gets them in CPU memory, the other ranks get empty tensors. One tensor is gathered at a time, so a
    GPU holds at most one whole tensor beside its shards.
    """
    if isinstance(state, DTensor):
        full = full_tensor(state.detach())
        return full.cpu() if collectives.is_main() else full.new_empty(0)
    if isinstance(state, dict):
        copied = state.copy()  # keeps the versions that torch attaches to a state dict
        copied.update((name, gather_state(value)) for name, value in state.items())
        return copied
    if isinstance(state, list | tuple):
        return type(state)(gather_state(value) for value in state)
    return state


def shard_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Shard `tensor` like `model`, without communication; no-op if `model` is unsharded or has another shape.

    Every rank must hold the same whole `tensor`, as each does after reading the checkpoint.
    """
    if not isinstance(model, DTensor) or tensor.shape != model.shape:
        return tensor
    # src_data_rank=None: each rank cuts its shard out of its own copy instead of receiving it from rank 0.
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None)


def load_method_state(method: nn.Module, state: dict[str, Any]) -> None:
    """Load a state of whole tensors into a method, sharded or not."""
    own = method.state_dict()
    method.load_state_dict(
        {name: shard_like(value, own[name]) if name in own else value for name, value in state.items()}
    )


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state of whole tensors into the optimizer of a method, sharded or not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sharded = {
        number: {
            name: shard_like(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": sharded})
