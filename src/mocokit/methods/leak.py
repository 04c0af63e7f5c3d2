"""Measure whether BatchNorm statistics leak the positive, and warn of settings in which they can.

Shapes: m queries, B global batch in G groups of N, C embedding dimension.
"""

from typing import Any

import torch
from torch import Tensor

from mocokit.methods.contract import MethodSettings, RunFacts


def bn_leak(
    q: Tensor, keys: Tensor, positive_similarity: Tensor, older: Tensor, *, first_row: int, rows_per_group: int
) -> Tensor:
    """Return how much nearer each query lies to the *other* keys of its BatchNorm group than to older keys: (m,).

    All of these are keys of other images. The difference is 0 unless query and keys share something that is not in the
    image: the statistics of their group. Shuffling BN exists to keep it at 0 (MoCo v1 sec. 3.3).

    Args:
        q: (m, C) queries of consecutive rows of the batch.
        keys: (B, C) keys of the whole batch.
        positive_similarity: (m,) similarity of each query and its own key.
        older: (B, C) keys of the batch before.
        first_row: Row of the batch that the first query belongs to.
        rows_per_group: N.

    """
    groups = keys.view(-1, rows_per_group, keys.shape[1]).sum(dim=1)  # (G, C)
    own_group = torch.arange(first_row, first_row + len(q), device=q.device) // rows_per_group  # (m,)
    others = ((q * groups[own_group]).sum(dim=1) - positive_similarity) / (rows_per_group - 1)  # (m,)
    return others - q @ older.mean(dim=0)


def warn_of_shuffle(settings: Any, facts: RunFacts) -> list[str]:
    """Return warnings for a method that relies on shuffling BN (`settings.shuffle`) to avoid the leak."""
    if not facts.has_batchnorm:
        if not settings.shuffle:
            return []
        return [
            "method.shuffle=True: without BatchNorm in the encoder it only costs time; leave it out with "
            "--method.no-shuffle"
        ]
    if settings.bn_groups == 1:
        return [
            "method.bn_groups=1: shuffling BN has no effect with one group, so a query can recognise its key by the "
            "BatchNorm statistics that they share; use 2 groups or more"
        ]
    if not settings.shuffle:
        return ["method.shuffle=False: query and key share BatchNorm statistics, so the loss can fall without learning"]
    return []


def warn_of_groups(settings: MethodSettings, facts: RunFacts) -> list[str]:
    """Return warnings for a method that contrasts views within the batch and does not shuffle."""
    if settings.bn_groups == 1 or not facts.has_batchnorm:
        return []
    return [
        f"method.bn_groups={settings.bn_groups}: both views of an image are normalised in the same group, which the "
        "loss can recognise instead of the image; the papers have one group over all devices, bn_groups=1"
    ]
