"""Measure the kNN accuracy of a run beside its baselines; under torchrun, the images are sharded over the ranks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from mocokit import distributed
from mocokit.data.loading.loader import choose_workers
from mocokit.data.sources.left_out import log_line
from mocokit.engine.backbone_file import load_backbone
from mocokit.engine.precision import pick_device
from mocokit.evaluate.baselines import FeatureExtractor, build_extractors, view_of
from mocokit.evaluate.features import Features, LabelledImages, extract_features
from mocokit.evaluate.knn import PROTOCOLS, KnnProtocol, knn_accuracy
from mocokit.evaluate.splits import open_train_and_test


@dataclass(frozen=True, kw_only=True)
class KnnRow:
    """kNN accuracies of one kind of features."""

    features: str
    accuracy: dict[KnnProtocol, float]
    """0..1"""


def compare_with_baselines(
    run: str | Path,
    *,
    bank: str | Path,
    queries: str | Path | None = None,
    backbone: nn.Module | None = None,
    baselines: bool = True,
    num_workers: int = -1,
    device_name: str = "auto",
    seed: int = 0,
    on_data: Callable[[str], object] = log_line,
) -> list[KnnRow]:
    """Return the kNN accuracy of a run's backbone, after those of the baselines.

    Args:
        run: Run folder or backbone file.
        bank: Labelled images that vote.
        queries: Labelled images to classify; None: the test part of `bank` if that is a split, else a held-out
            tenth of it.
        backbone: The module that `pretrain` was given, if any; else None.
        baselines: Also measure raw pixels and a random-init backbone.
        num_workers: Loader processes; 0: threads; -1: threads on a CPU, else the cores.
        device_name: auto, cpu, cuda or cuda:N.
        seed: Seed of the random-init backbone and of the held-out tenth.
        on_data: Called with a line about each set of images; every rank calls it.

    """
    loaded = load_backbone(run, backbone=backbone)
    device = pick_device(device_name, local_rank=distributed.local_rank())
    with distributed.session(device.type):
        num_workers = choose_workers(num_workers, threads_suffice=device.type == "cpu", location=str(bank))
        view = view_of(loaded.card, num_workers=num_workers)
        train, test = open_train_and_test(bank, queries, view, seed=seed, on_data=on_data)
        return [
            KnnRow(features=extractor.name, accuracy=_knn_on_ranks(extractor, train, test, device))
            for extractor in build_extractors(loaded, baselines=baselines, device=device, seed=seed)
        ]


def _knn_on_ranks(
    extractor: FeatureExtractor, bank: LabelledImages, queries: LabelledImages, device: torch.device
) -> dict[KnnProtocol, float]:
    own_bank, own_queries = (
        extract_features(extractor.embed, _share(images), device=device) for images in (bank, queries)
    )
    return knn_accuracy(own_bank, _all_ranks(own_queries), PROTOCOLS, device=device, bank_is_shard=True)


def _share(images: LabelledImages) -> LabelledImages:
    """Return this rank's part of the images: every R-th one, where R is the number of ranks."""
    return images.only(images.indices[distributed.rank() :: distributed.world_size()])


def _all_ranks(features: Features) -> Features:
    counts = distributed.all_gather_objects(len(features.rows))
    return replace(
        features,
        rows=distributed.all_gather_rows(features.rows, counts),
        labels=distributed.all_gather_rows(features.labels, counts),
    )
