"""The encoder f: backbone and head, with output rows of length 1."""

import torch.nn.functional as F
from torch import Tensor, nn

from mocokit.nets.grouped_batchnorm import convert_batchnorm
from mocokit.nets.patches import CombinedPatches


class Encoder(nn.Module):
    """Network from images (N, 3, H, W) to unit rows (N, C), float32 at least.

    Args:
        backbone: Module from images to (N, D) features. Its BatchNorm layers are replaced by grouped ones, in place.
        head: Module from (N, D) to (N, C).
        predictor: Module from (N, C) to (N, C) after the head, for MoCo v3's queries; None: none.
        patches: Embed combinations of each image's patches instead of the image (Fast-MoCo's queries), which gives
            `queries_per_image` consecutive rows an image; None: embed the image.

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
        """Queries per image: 1 without patches."""
        return 1 if self.patches is None else len(self.patches.combinations)

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images`."""
        features = self.backbone(images) if self.patches is None else self.patches(self.backbone, images)  # (N, D)
        embedding: Tensor = self.predictor(self.head(features))  # (N, C)
        if embedding.element_size() < 4:
            embedding = embedding.float()  # in half precision, rounding would leave rows whose length is not 1
        return F.normalize(embedding, dim=1)
