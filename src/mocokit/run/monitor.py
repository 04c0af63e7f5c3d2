"""The kNN monitor of a run: kNN accuracy of the backbone, measured between epochs on labelled images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mocokit import distributed
from mocokit.data.views import ImageReader
from mocokit.distributed.fsdp import gather_state, sharded_modules
from mocokit.engine.precision import Precision
from mocokit.evaluate.features import EvaluationView, LabelledImages, choose_images, draw_indices, embed_with
from mocokit.evaluate.knn import KnnProtocol, knn_of
from mocokit.methods.contract import Method
from mocokit.nets.backbones import build_seeded
from mocokit.nets.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """The two steps of an evaluation during training."""

    gather: Callable[[], None]
    """Gathers sharded weights on the main rank; called on all ranks."""
    evaluate: Callable[[], dict[str, float]]
    """Returns {"knn_acc": accuracy in 0..1}; called on the main rank."""


def build_monitor(
    method: Method[Any],
    reader: ImageReader,
    test: ImageReader | None,
    *,
    build_encoder: Callable[[], Encoder],
    view: EvaluationView,
    protocol: KnnProtocol,
    max_images: int,
    seed: int,
    precision: Precision,
    device: torch.device,
    test_location: str = "",
) -> Monitor:
    """Build the monitor of the query backbone.

    Args:
        method: Whose backbone is evaluated.
        reader: Labelled training images, from which the bank comes.
        test: Labelled images to classify; None: every tenth of the drawn training images.
        build_encoder: Builds an encoder like the method's, to hold gather_state weights.
        view: How images are read.
        protocol: Neighbours and temperature.
        max_images: Largest bank; there are at most a fifth as many queries.
        seed: Seed of the draw of images.
        precision: Number format of the forward passes.
        device: Device of the forward passes.
        test_location: Where the images to classify are, for messages.

    """
    bank, queries = _bank_and_queries(reader, test, view, max_images=max_images, seed=seed, location=test_location)
    trained = method.encoder_q.backbone
    whole = trained
    is_sharded = bool(sharded_modules(method))
    if is_sharded and distributed.is_main():
        whole = build_seeded(build_encoder, 0).backbone.to(device=device, dtype=precision.dtype)

    def gather() -> None:
        """Put the sharded weights together in the main rank's copy."""
        if is_sharded:
            state = gather_state(trained.state_dict())
            if distributed.is_main():
                whole.load_state_dict(state)

    embed = embed_with(whole, method.pixels, precision)

    def evaluate() -> dict[str, float]:
        accuracy = knn_of(embed, bank, queries, [protocol], device=device)[protocol]
        for images in (bank, queries):
            images.tally.tell()
        return {"knn_acc": accuracy}

    return Monitor(gather=gather, evaluate=evaluate)


def _bank_and_queries(
    reader: ImageReader, test: ImageReader | None, view: EvaluationView, *, max_images: int, seed: int, location: str
) -> tuple[LabelledImages, LabelledImages]:
    """Return the images that vote and those to classify; `location` is that of the test images, for messages."""
    # Unreadable images don't end the run here (a share of 1): it has its own count of them, data.max_bad_share.
    bank_of = partial(choose_images, reader, view, role="training", max_bad_share=1.0)
    queries_of = partial(choose_images, view=view, role="test", max_bad_share=1.0)
    drawn = draw_indices(len(reader.source), max_images, seed=seed)
    if test is None:
        rest = [index for row, index in enumerate(drawn) if row % 10]
        return bank_of(indices=rest), queries_of(reader, indices=drawn[::10])
    asked = draw_indices(len(test.source), max_images // 5, seed=seed)
    names = reader.source.class_names
    queries = queries_of(test, indices=asked, class_names=names, setting="data.test", location=location)
    return bank_of(indices=drawn), queries
