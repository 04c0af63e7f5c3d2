"""Multi-crop: small "local" crops of an image as further queries (SwAV, Caron et al. 2020, sec. 3.2 and eq. 6).

A method contrasts an image in D directions, each with a query q_d of its own and its own candidates: the positive and
the negatives. D is 2 for a symmetric loss, else 1. Each of V local crops, embedded to l_v, is one query more in every
direction, with the candidates of q_d:

    loss of an image = sum over d of (ctr_d(q_d) + sum over v of ctr_d(l_v)) / (1 + V)

That is the mean over its queries times the directions, so that the loss's scale, its value by chance and the learning
rate stay what they are without crops. As in SwAV, nothing is ever compared *with* a crop: positives and negatives come
from whole views.

The crops of a BatchNorm group are normalised together and apart from its views, from which they differ in size; SwAV
too runs the network once for each size. Ours: running statistics follow the views alone, since those are the size at
which a backbone is evaluated.

Shapes: n rows of this rank, V local crops an image, s their size, C embedding dimension.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mocokit.losses import InfoNce
from mocokit.methods.group_forward import GroupForward
from mocokit.methods.groups import MicroBatch


def embed_crops(forwards: GroupForward, encoder: nn.Module, local: Tensor | None, micro: MicroBatch) -> list[Tensor]:
    """V embeddings (micro rows, C) of the micro-batch's part of `local` (n, V, 3, s, s), in one pass; none of None."""
    if local is None:
        return []
    embeddings = forwards.run(encoder, local, micro, moves=False)  # (micro rows * V, C), image by image
    return list(embeddings.unflatten(0, (-1, local.shape[1])).unbind(dim=1))


def image_losses(contrasts: Sequence[Sequence[InfoNce]]) -> Tensor:
    """(rows,) loss of each image, from the contrasts of each of its queries (first index) in each direction."""
    return torch.stack([nce.row_losses for query in contrasts for nce in query]).sum(dim=0) / len(contrasts)
