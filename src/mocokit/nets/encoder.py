"""An encoder f: backbone and head, ending on the unit sphere."""

import torch.nn.functional as F
from torch import Tensor, nn

from mocokit.nets.grouped_batchnorm import convert_batchnorm
from mocokit.nets.patches import CombinedPatches


class Encoder(nn.Module):
    """Images (N, 3, H, W) -> unit rows (N, C), in float32 at least.

    Args:
        backbone: Any module that gives (N, D) features; its BatchNorm layers become grouped ones, in place.
        head: Module from (N, D) to (N, C).
        predictor: Module from (N, C) to (N, C) that comes after the head (MoCo v3's queries); None: none.
        patches: Embed combinations of an image's patches (Fast-MoCo's queries), several rows an image, instead of it.

    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        predictor: nn.Module | None = None,
        *,
        patches: CombinedPatches | None = None,
    ) -> None:
        super().__init__()
        self.backbone = convert_batchnorm(backbone)
        self.head = convert_batchnorm(head)
        self.predictor = convert_batchnorm(predictor or nn.Identity())
        self.patches = patches

    @property
    def queries_per_image(self) -> int:
        """Rows that an image comes to."""
        return 1 if self.patches is None else len(self.patches.choices)

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images`; the norm is taken outside half precision, whose rows would not have length 1."""
        features = self.backbone(images) if self.patches is None else self.patches(self.backbone, images)  # (N, D)
        embedding: Tensor = self.predictor(self.head(features))  # (N, C)
        if embedding.element_size() < 4:
            embedding = embedding.float()
        return F.normalize(embedding, dim=1)
