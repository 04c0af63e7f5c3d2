"""Feature extractors to compare: the pre-trained backbone, and its baselines, raw pixels and random weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mocokit.engine.agreement import weights_digest
from mocokit.engine.backbone_file import BackboneCard, LoadedBackbone, random_backbone
from mocokit.engine.precision import Precision
from mocokit.evaluate.feature_cache import FeatureCache
from mocokit.evaluate.features import (
    EvaluationView,
    Features,
    LabelledImages,
    embed_pixels,
    embed_with,
)
from mocokit.evaluate.rank_shares import extract_share, on_all_ranks
from mocokit.nets.pixels import PixelNormalize

PRE_TRAINED = "pre-trained"
RANDOM_INIT = "random init"
RAW_PIXELS = "raw pixels"


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """One kind of frozen features to evaluate."""

    name: str
    """PRE_TRAINED, RANDOM_INIT or RAW_PIXELS: the column of the table."""
    embed: Callable[[Tensor], Tensor]
    """Maps (n, 3, S, S) uint8 pixels to (n, D) features."""
    pixels: PixelNormalize
    """Normalises uint8 pixels for the backbone."""
    backbone: nn.Module | None
    """Network that computes the features; None: the features are the pixels themselves."""
    cache_key: str | None
    """Everything that the features depend on besides the images; None: cheap features, which are not cached."""

    def features(self, images: LabelledImages, cache: FeatureCache, *, device: torch.device) -> Features:
        """Return the features of `images` on all ranks, from the cache if possible; each rank computes a part."""

        def extract() -> Features:
            return extract_share(self.embed, images, device=device)

        return on_all_ranks(extract()) if self.cache_key is None else cache.get(self.cache_key, images, extract)


def build_extractors(
    loaded: LoadedBackbone, *, baselines: bool, device: torch.device, seed: int, precision: Precision | None = None
) -> list[FeatureExtractor]:
    """Return the extractor of the pre-trained backbone, after those of the baselines if they are asked for.

    Args:
        loaded: The pre-trained backbone.
        baselines: Include raw pixels and a random-init backbone.
        device: Device of the networks.
        seed: Seed of the random weights.
        precision: Number format of the forwards; None: fp32.

    """
    pixels = loaded.pixels.to(device)

    def network(name: str, backbone: nn.Module) -> FeatureExtractor:
        """Return the extractor of a backbone's features."""
        parts = (weights_digest(backbone), loaded.card.mean, loaded.card.std, precision.name if precision else "fp32")
        return FeatureExtractor(
            name=name,
            embed=embed_with(backbone.to(device), pixels, precision),
            pixels=pixels,
            backbone=backbone,
            cache_key=repr(parts),
        )

    trained = network(PRE_TRAINED, loaded.backbone)
    if not baselines:
        return [trained]
    raw = FeatureExtractor(name=RAW_PIXELS, embed=embed_pixels(pixels), pixels=pixels, backbone=None, cache_key=None)
    return [raw, network(RANDOM_INIT, random_backbone(loaded.card, seed=seed, backbone=loaded.backbone)), trained]


def view_of(card: BackboneCard, *, num_workers: int) -> EvaluationView:
    """Return the size and crop that this backbone reads images with."""
    return EvaluationView(
        size_px=card.image_size,
        crop_ratio=card.eval_crop_ratio,
        num_workers=num_workers,
        value_ranges=card.value_ranges,
    )
