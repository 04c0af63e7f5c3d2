"""Multi-crop: small "local" crops of an image as further queries (SwAV, Caron et al. 2020, sec. 3.2 and eq. 6).

A method contrasts an image in D directions, each with a query q_d and candidates of its own: the positive and the
negatives. D is 2 for a symmetric loss, else 1. Each of V local crops, embedded to l_v, is one more query in every
direction, with the candidates of q_d:

    loss of an image = sum over d of (ctr_d(q_d) + sum over v of ctr_d(l_v)) / (1 + V)

This is the mean over its queries, times the number of directions. So the scale of the loss, its value by chance and the
learning rate stay as they are without crops. As in SwAV, nothing is compared *with* a crop: positives and negatives
come from whole views.

The crops of a BatchNorm group are normalised together, apart from its views, whose size differs; SwAV too runs the
network once for each size. Running statistics follow the views alone, because a backbone is evaluated at their size.

Shapes: n rows of this rank, m of a micro-batch, V local crops an image, s their size, C embedding dimension.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mocokit.losses import InfoNce
from mocokit.methods.group_forward import GroupForward
from mocokit.methods.groups import MicroBatch


def embed_crops(forwards: GroupForward, encoder: nn.Module, local: Tensor | None, micro: MicroBatch) -> list[Tensor]:
    """Return V embeddings (m, C) of the micro-batch's part of `local` (n, V, 3, s, s), from one pass; [] for None."""
    if local is None:
        return []
    crops = local[micro.rows].flatten(0, 1)  # (m * V, 3, s, s), image by image
    embeddings = forwards.embed(encoder, crops, micro, update_bn_stats=False)  # (m * V, C)
    return list(embeddings.unflatten(0, (-1, local.shape[1])).unbind(dim=1))


def image_losses(contrasts: Sequence[Sequence[InfoNce]]) -> Tensor:
    """Return each image's loss (m,) from its contrasts: first index the query, second the direction."""
    return torch.stack([nce.row_losses for query in contrasts for nce in query]).sum(dim=0) / len(contrasts)
