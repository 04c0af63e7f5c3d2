"""The kNN table of a run, beside what it has to beat: raw pixels and the same network before training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mocokit.config import DataConfig
from mocokit.data.open_source import open_source
from mocokit.data.views import ImageReader
from mocokit.engine.precision import pick_device
from mocokit.evaluate.features import (
    EvaluationView,
    LabelledImages,
    choose_images,
    draw_indices,
    embed_pixels,
    embed_with,
)
from mocokit.evaluate.knn import PROTOCOLS, KnnProtocol, knn_of
from mocokit.export.backbone import BackboneCard, LoadedBackbone, load_backbone, random_backbone

MAX_IMAGE_PX = DataConfig.max_image_px


@dataclass(frozen=True, kw_only=True)
class KnnRow:
    """One line of the table."""

    features: str
    accuracy: dict[KnnProtocol, float]


def compare_with_baselines(
    run: str | Path,
    *,
    bank: str | Path,
    queries: str | Path | None = None,
    baselines: bool = True,
    num_workers: int = 2,
    device_name: str = "auto",
    seed: int = 0,
) -> list[KnnRow]:
    """kNN accuracy of a run's backbone, and of the baselines.

    Args:
        run: Run folder or backbone file.
        bank: Labelled images that vote.
        queries: Labelled images to classify; None: a tenth of `bank`, held out.
        baselines: Also judge raw pixels and a random-init backbone.
        num_workers: Loader processes.
        device_name: auto, cpu, cuda or cuda:N.
        seed: Seed of the random-init backbone and of the held-out tenth.

    """
    loaded, device = load_backbone(run), pick_device(device_name, local_rank=0)
    bank_images, query_images = _choose(loaded.card, bank, queries, num_workers=num_workers, seed=seed)
    embeddings = embeddings_of(loaded, baselines=baselines, device=device, seed=seed)
    return [
        KnnRow(features=name, accuracy=knn_of(embed, bank_images, query_images, PROTOCOLS, device=device))
        for name, embed in embeddings.items()
    ]


def embeddings_of(
    loaded: LoadedBackbone, *, baselines: bool, device: torch.device, seed: int
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The pre-trained embedding, after the baselines that it has to beat, by name."""
    pixels = loaded.pixels.to(device)
    trained = {"pre-trained": embed_with(loaded.backbone.to(device), pixels)}
    if not baselines:
        return trained
    random = random_backbone(loaded.card, seed=seed).to(device)
    return {"raw pixels": embed_pixels(pixels), "random init": embed_with(random, pixels), **trained}


def _choose(
    card: BackboneCard, bank: str | Path, queries: str | Path | None, *, num_workers: int, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    view = EvaluationView(size_px=card.image_size, crop_ratio=card.eval_crop_ratio, num_workers=num_workers)
    reader = ImageReader(open_source(bank), max_image_px=MAX_IMAGE_PX, seed=seed)
    if queries is not None:
        other = ImageReader(open_source(queries), max_image_px=MAX_IMAGE_PX, seed=seed)
        return (
            choose_images(reader, view),
            choose_images(other, view, class_names=reader.source.class_names),
        )
    held_out = set(draw_indices(len(reader.source), max(1, len(reader.source) // 10), seed=seed))
    rest = [index for index in range(len(reader.source)) if index not in held_out]
    return choose_images(reader, view, indices=rest), choose_images(reader, view, indices=sorted(held_out))
