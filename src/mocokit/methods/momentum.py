"""The momentum update: encoder_k follows encoder_q (MoCo v1 eq. 2)."""

import copy

import torch
from torch import Tensor, nn

from mocokit.nets.encoder import Encoder


def copy_for_keys(encoder_q: Encoder) -> Encoder:
    """A copy that no gradient reaches (Algorithm 1: f_k.params = f_q.params), and that reads whole images."""
    encoder_k = copy.deepcopy(encoder_q)
    encoder_k.patches = None
    for parameter in encoder_k.parameters():
        parameter.requires_grad_(False)
    return encoder_k


@torch.no_grad()
def momentum_update(encoder_k: nn.Module, encoder_q: nn.Module, key_momentum: float) -> None:
    """theta_k <- theta_k + (1 - m) (theta_q - theta_k), parameters only: BatchNorm statistics of f_k are its own.

    Parameters are paired by name; `encoder_q` may have more of them (MoCo v3's predictor).
    """
    leading: dict[str, Tensor] = dict(encoder_q.named_parameters())
    keys: list[Tensor] = list(encoder_k.parameters())
    queries = [leading[name] for name, _ in encoder_k.named_parameters()]
    torch._foreach_lerp_(keys, queries, 1.0 - key_momentum)
