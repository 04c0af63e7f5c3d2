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
    warnings: tuple[str, ...] = ()
    """Sentences about images or settings that limit what the accuracy means."""


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

    Raises:
        ValueError: The labels or `max_images` allow no kNN accuracy; the message says what to do.

    """
    bank, queries = draw_bank_and_queries(
        reader, test, view, max_images=max_images, seed=seed, test_location=test_location
    )
    warnings = check_bank(bank, queries, k=protocol.k, max_images=max_images)
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
        """Return the kNN accuracy, and tell which images could not be read."""
        accuracy = knn_of(embed, bank, queries, [protocol], device=device)[protocol]
        for images in (bank, queries):
            images.tally.tell()
        return {"knn_acc": accuracy}

    return Monitor(gather=gather, evaluate=evaluate, warnings=warnings)


def draw_bank_and_queries(
    reader: ImageReader,
    test: ImageReader | None,
    view: EvaluationView,
    *,
    max_images: int,
    seed: int,
    test_location: str = "",
) -> tuple[LabelledImages, LabelledImages]:
    """Return the images that vote and those to classify; see `build_monitor` for the arguments and errors."""
    # Unreadable images don't end the run here (a share of 1): it has its own count of them, data.max_bad_share.
    bank_of = partial(choose_images, reader, view, role="training", max_bad_share=1.0)
    queries_of = partial(choose_images, view=view, role="test", max_bad_share=1.0)
    drawn = draw_indices(len(reader.source), max_images, seed=seed)
    if test is None:
        rest = [index for row, index in enumerate(drawn) if row % 10]
        return bank_of(indices=rest), queries_of(reader, indices=drawn[::10])
    asked = draw_indices(len(test.source), max_images // 5, seed=seed)
    queries = queries_of(
        test,
        indices=asked,
        class_names=reader.source.class_names,
        setting="data.test",
        location=test_location,
    )
    return bank_of(indices=drawn), queries


def check_bank(bank: LabelledImages, queries: LabelledImages, *, k: int, max_images: int) -> tuple[str, ...]:
    """Return warnings about a bank that is small for its k neighbours, or that lacks classes.

    Raises:
        ValueError: There is no bank or nothing to classify, or `max_images` makes the bank smaller than k.

    """
    size = len(bank.indices)
    if not size or not queries.indices:
        raise ValueError(
            f"run.knn_max_images={max_images}: {size} images vote and {len(queries.indices)} are classified; both need "
            "one at least: raise it, add labelled images, or turn the monitor off with run.knn_every=0"
        )
    if size < k and len(bank.reader.source) > max_images:
        raise ValueError(
            f"run.knn_max_images={max_images}: only {size} images vote, fewer than the run.knn_k={k} neighbours; raise "
            "the one or lower the other"
        )
    warnings = []
    if size < k:
        warnings.append(f"run.knn_k={k}: more neighbours than the {size} images that vote, so all of them do")
    known = {bank.labels[index] for index in bank.indices}
    missing = {queries.labels[index] for index in queries.indices} - known
    if missing:
        names = ", ".join(bank.class_names[label] for label in sorted(missing)[:3])
        warnings.append(
            f"kNN monitor: {len(missing)} of {len(known | missing)} classes have no image that votes, for example "
            f"{names}; their images always count as wrong; raise run.knn_max_images"
        )
    return tuple(warnings)
