"""The momentum update: encoder_k follows encoder_q (MoCo v1 eq. 2)."""

import copy
import math

import torch
from torch import Tensor, nn

from mocokit.nets.encoder import Encoder


def copy_for_keys(encoder_q: Encoder) -> Encoder:
    """Return a copy that takes no gradient (Algorithm 1: f_k.params = f_q.params) and reads whole images."""
    encoder_k = copy.deepcopy(encoder_q)
    encoder_k.patches = None
    for parameter in encoder_k.parameters():
        parameter.requires_grad_(False)
    return encoder_k


@torch.no_grad()
def momentum_update(encoder_k: nn.Module, encoder_q: nn.Module, key_momentum: float) -> None:
    """Move the key encoder's parameters towards the query encoder's: theta_k <- theta_k + (1 - m) (theta_q - theta_k).

    Parameters are paired by name; `encoder_q` may have more of them (MoCo v3's predictor). BatchNorm statistics of
    encoder_k are its own and stay. One fused call for all tensors: ResNet-50 has 161.
    """
    leading: dict[str, Tensor] = dict(encoder_q.named_parameters())
    keys: list[Tensor] = list(encoder_k.parameters())
    queries = [leading[name] for name, _ in encoder_k.named_parameters()]
    torch._foreach_lerp_(keys, queries, 1.0 - key_momentum)


def cosine_key_momentum(progress: float, *, start: float) -> float:
    """Return m, which rises from `start` at progress 0 to 1 at progress 1 by a half cosine (MoCo v3 sec. 4.1)."""
    return 1.0 - (1.0 - start) * 0.5 * (1.0 + math.cos(math.pi * progress))
