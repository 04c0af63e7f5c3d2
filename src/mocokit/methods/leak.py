"""Is it the image that a query recognises, or the company it was normalised in?

Shapes: m queries, B global batch in G groups of N, C embedding dimension.
"""

import torch
from torch import Tensor


def bn_leak(
    q: Tensor, keys: Tensor, positive_similarity: Tensor, older: Tensor, *, first_row: int, rows_per_group: int
) -> Tensor:
    """(m,) how much nearer a query lies to the *other* keys of its own BatchNorm group than to older ones.

    Both are keys of other images. It is 0 unless query and keys share something that is not in the image: the group's
    statistics. Shuffling BN exists to keep it at 0 (MoCo v1 sec. 3.3).

    Args:
        q: (m, C) queries of consecutive rows of the batch.
        keys: (B, C) keys of the whole batch.
        positive_similarity: (m,) of each query and its own key.
        older: (B, C) keys of the batch before.
        first_row: Row of the batch that the first query belongs to.
        rows_per_group: N.

    """
    groups = keys.view(-1, rows_per_group, keys.shape[1]).sum(dim=1)  # (G, C)
    own_group = torch.arange(first_row, first_row + len(q), device=q.device) // rows_per_group
    others = ((q * groups[own_group]).sum(dim=1) - positive_similarity) / (rows_per_group - 1)
    return others - q @ older.mean(dim=0)
