"""What is judged: a pre-trained backbone, and what it has to beat: raw pixels, the same network before training."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mocokit.engine.backbone_file import BackboneCard, LoadedBackbone, random_backbone
from mocokit.engine.precision import Precision
from mocokit.evaluate.feature_cache import FeatureCache
from mocokit.evaluate.features import (
    EvaluationView,
    Features,
    LabelledImages,
    embed_pixels,
    embed_with,
    extract_features,
)
from mocokit.evaluate.frozen import weights_digest
from mocokit.nets.pixels import PixelNormalize

PRE_TRAINED = "pre-trained"
RANDOM_INIT = "random init"
RAW_PIXELS = "raw pixels"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Features to judge."""

    name: str
    embed: Callable[[Tensor], Tensor]
    """(n, 3, S, S) uint8 pixels -> (n, D)"""
    pixels: PixelNormalize
    backbone: nn.Module | None
    """None: the features are the pixels."""
    cache_key: str | None
    """All that the features depend on beside the images; None: not worth keeping."""

    def features(self, images: LabelledImages, cache: FeatureCache, *, device: torch.device) -> Features:
        """The features of `images`, from the cache where they are."""

        def extract() -> Features:
            return extract_features(self.embed, images, device=device)

        return extract() if self.cache_key is None else cache.get(self.cache_key, images, extract)


def subjects_of(
    loaded: LoadedBackbone, *, baselines: bool, device: torch.device, seed: int, precision: Precision | None = None
) -> list[Subject]:
    """The pre-trained backbone, after the baselines if they are asked for.

    Args:
        loaded: The pre-trained backbone.
        baselines: Also raw pixels and a random-init backbone.
        device: Where they compute.
        seed: Of the random weights.
        precision: Number format of the networks' forwards; None: fp32.

    """
    pixels = loaded.pixels.to(device)

    def network(name: str, backbone: nn.Module) -> Subject:
        """The features of a backbone."""
        parts = (weights_digest(backbone), loaded.card.mean, loaded.card.std, precision.name if precision else "fp32")
        return Subject(
            name=name,
            embed=embed_with(backbone.to(device), pixels, precision),
            pixels=pixels,
            backbone=backbone,
            cache_key=repr(parts),
        )

    trained = network(PRE_TRAINED, loaded.backbone)
    if not baselines:
        return [trained]
    raw = Subject(name=RAW_PIXELS, embed=embed_pixels(pixels), pixels=pixels, backbone=None, cache_key=None)
    return [raw, network(RANDOM_INIT, random_backbone(loaded.card, seed=seed)), trained]


def view_of(card: BackboneCard, *, num_workers: int) -> EvaluationView:
    """How images are read for this backbone."""
    return EvaluationView(size_px=card.image_size, crop_ratio=card.eval_crop_ratio, num_workers=num_workers)
