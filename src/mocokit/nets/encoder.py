"""An encoder f: backbone and head, ending on the unit sphere."""

import torch.nn.functional as F
from torch import Tensor, nn

from mocokit.nets.grouped_batchnorm import convert_batchnorm


class Encoder(nn.Module):
    """Images (N, 3, H, W) -> unit rows (N, C), in float32 at least.

    Args:
        backbone: Any module that gives (N, D) features; its BatchNorm layers become grouped ones, in place.
        head: Module from (N, D) to (N, C).
        predictor: Module from (N, C) to (N, C) that comes after the head (MoCo v3's queries); None: none.

    """

    def __init__(self, backbone: nn.Module, head: nn.Module, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = convert_batchnorm(backbone)
        self.head = convert_batchnorm(head)
        self.predictor = convert_batchnorm(predictor or nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images`; the norm is taken outside half precision, whose rows would not have length 1."""
        embedding: Tensor = self.predictor(self.head(self.backbone(images)))  # (N, C)
        if embedding.element_size() < 4:
            embedding = embedding.float()
        return F.normalize(embedding, dim=1)
