"""Measure the kNN accuracy of a run beside its baselines; under torchrun, the images are sharded over the ranks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mocokit import distributed
from mocokit.data.loading.loader import choose_workers
from mocokit.data.sources.identity import identify
from mocokit.data.sources.left_out import log_line
from mocokit.engine.backbone_file import load_backbone
from mocokit.engine.device import pick_device
from mocokit.evaluate.baselines import FeatureExtractor, build_extractors, view_of
from mocokit.evaluate.features import LabelledImages
from mocokit.evaluate.knn import PROTOCOLS, KnnProtocol, knn_accuracy
from mocokit.evaluate.rank_shares import ADVICE, extract_share, on_all_ranks
from mocokit.evaluate.splits import open_labelled, train_and_test, warn_of_overlap
from mocokit.evaluate.unreadable import MAX_BAD_SHARE


@dataclass(frozen=True, kw_only=True)
class KnnRow:
    """kNN accuracies of one kind of features."""

    features: str
    accuracy: dict[KnnProtocol, float]
    """0..1"""
    num_bank: int
    """Images that voted."""
    num_queries: int
    """Images that were classified."""


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
    max_bad_share: float = MAX_BAD_SHARE,
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
        device_name: auto, cpu, cuda, cuda:N or mps.
        seed: Seed of the random-init backbone and of the held-out tenth.
        max_bad_share: Largest share of either set that may be unreadable; they are left out.
        on_data: Called with a line about each set of images; every rank calls it.

    Raises:
        ValueError: No backbone or no labels there, or too many images can't be read.

    """
    loaded = load_backbone(run, backbone=backbone)
    device = pick_device(device_name, local_rank=distributed.local_rank())
    with distributed.session(device.type, advice=ADVICE):
        num_workers = choose_workers(num_workers, threads_suffice=device.type == "cpu", location=str(bank))
        view = view_of(loaded.card, num_workers=num_workers)
        opened = open_labelled(bank, queries, view, max_bad_share=max_bad_share, on_data=on_data)
        with distributed.work_alone():
            if opened[1] is not None and distributed.is_main():
                warn_of_overlap(*opened, [identify(part.reader.source) for part in opened if part is not None])
        train, test = train_and_test(*opened, seed=seed)
        return [
            _knn_on_ranks(extractor, train, test, device)
            for extractor in build_extractors(loaded, baselines=baselines, device=device, seed=seed)
        ]


def _knn_on_ranks(
    extractor: FeatureExtractor, bank: LabelledImages, queries: LabelledImages, device: torch.device
) -> KnnRow:
    own_bank, own_queries = (extract_share(extractor.embed, images, device=device) for images in (bank, queries))
    if distributed.is_main():
        for images in (bank, queries):
            images.tally.tell()
    accuracy = knn_accuracy(own_bank, on_all_ranks(own_queries), PROTOCOLS, device=device, bank_is_shard=True)
    return KnnRow(
        features=extractor.name, accuracy=accuracy, num_bank=bank.num_readable, num_queries=queries.num_readable
    )
