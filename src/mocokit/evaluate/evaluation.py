"""Evaluate a backbone with labels by several protocols (kNN, linear classification, fine-tuning) into one table.

Under torchrun all ranks share the work and return the same rows; the main rank writes the files.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from mocokit import distributed
from mocokit.data.loading.loader import choose_workers
from mocokit.data.sources.identity import hash_names, image_names
from mocokit.data.sources.left_out import log_line
from mocokit.data.sources.open_source import absolute_location
from mocokit.engine.agreement import code_version, raise_on_disagreement, weights_digest
from mocokit.engine.backbone_file import LoadedBackbone, load_backbone
from mocokit.engine.device import pick_device
from mocokit.engine.precision import Precision
from mocokit.evaluate.baselines import FeatureExtractor, build_extractors, view_of
from mocokit.evaluate.builtin_protocols import find_protocol
from mocokit.evaluate.contract import EvalContext, EvalProtocol, Score, run_protocol
from mocokit.evaluate.feature_cache import FeatureCache
from mocokit.evaluate.features import LabelledImages
from mocokit.evaluate.rank_shares import ADVICE
from mocokit.evaluate.results import Row, load_rows, merge_rows, require_writable, save_rows
from mocokit.evaluate.splits import open_labelled, train_and_test, warn_of_overlap
from mocokit.evaluate.unreadable import MAX_BAD_SHARE

LOGGER = logging.getLogger("mocokit")

STANDARD = ("knn", "linear/fast", "finetune/lr-grid@1%", "finetune/lr-grid@10%")
"""Protocols that `mocokit evaluate` runs by default."""

ALL = (*STANDARD, "linear/moco", "finetune/lr-grid@100%")
"""STANDARD and the two protocols that train on all images for many epochs."""


def evaluate(  # noqa: PLR0913, each is a flag of the command, or a callback of it
    run: str | Path,
    *,
    data: str | Path,
    test: str | Path | None = None,
    protocols: Sequence[str | EvalProtocol] = STANDARD,
    backbone: nn.Module | None = None,
    baselines: bool = True,
    seeds: Sequence[int] = (0,),
    epochs_scale: float = 1.0,
    num_workers: int = -1,
    device_name: str = "auto",
    precision_name: str = "fp32",
    max_bad_share: float = MAX_BAD_SHARE,
    out: str | Path | None = None,
    say: Callable[[str], None] = lambda _text: None,
    on_rows: Callable[[list[Row]], None] = lambda _rows: None,
    on_data: Callable[[str], object] = log_line,
) -> list[Row]:
    """Evaluate a run, update its `evaluation.json` and `evaluation.md` after each protocol, and return the new rows.

    Args:
        run: Run folder or backbone file.
        data: Labelled images to train on.
        test: Labelled images to test on; None: the test part of `data` if that is a split, else a held-out tenth.
        protocols: Names (see `find_protocol`) or own objects (see `EvalProtocol`); skipped if there are too few labels.
        backbone: The module that `pretrain` was given, if any; else None.
        baselines: Also evaluate raw pixels and a random-init backbone, for the protocols that suit them.
        seeds: One evaluation per seed, with its own subsets, crops, order, initial weights and random-init backbone.
        epochs_scale: Length of each training, as a multiple of its protocol's; the ids tell the epochs.
        num_workers: Loader processes; 0: threads; -1: threads on a CPU, else the cores.
        device_name: auto, cpu, cuda, cuda:N or mps.
        precision_name: Number format of the backbone: fp32 or bf16.
        max_bad_share: Largest share of the training or of the test images that may be unreadable; they are left out.
        out: Folder for the results and the cached features; None: the run's own (see `results_folder`).
        say: Called with a line of progress; under torchrun every rank calls it, and the two below.
        on_rows: Called with the new rows of each protocol and kind of features.
        on_data: Called with a line about each set of images (describe_source).

    """
    found = [find_protocol(protocol) if isinstance(protocol, str) else protocol for protocol in protocols]
    loaded = load_backbone(run, backbone=backbone)
    device = pick_device(device_name, local_rank=distributed.local_rank())
    precision = Precision(precision_name, device)
    folder = results_folder(run, out)
    cache = FeatureCache(folder / "features")
    build = partial(EvalContext, device=device, precision=precision, cache=cache, epochs_scale=epochs_scale, say=say)
    with distributed.session(device.type, advice=ADVICE):
        distributed.on_main(partial(require_writable, folder))
        view = view_of(loaded.card, num_workers=_workers(num_workers, device, data))
        opened = open_labelled(data, test, view, max_bad_share=max_bad_share, on_data=on_data)
        facts = _facts(loaded, data, opened, cache)
        rows = list[Row]()
        for seed in seeds:
            extractors = build_extractors(loaded, baselines=baselines, device=device, seed=seed, precision=precision)
            for context, scores in _run_all(found, _contexts(build, extractors, opened, seed)):
                rows += (new := [_row(score, context, **facts) for score in scores])
                distributed.on_main(partial(_update, folder, tuple(rows)))
                on_rows(new)
        return rows


def _workers(asked: int, device: torch.device, data: str | Path) -> int:
    return choose_workers(asked, threads_suffice=device.type == "cpu", location=str(data))


def _contexts(
    build: Callable[..., EvalContext],
    extractors: Sequence[FeatureExtractor],
    opened: tuple[LabelledImages, LabelledImages | None],
    seed: int,
) -> list[EvalContext]:
    """Return the context of each extractor on the images that `seed` gives for training and testing."""
    train, tested = train_and_test(*opened, seed=seed)
    return [build(extractor=extractor, train=train, test=tested, seed=seed) for extractor in extractors]


def _update(folder: Path, rows: Sequence[Row]) -> None:
    """Write the results with these rows in the place of older ones."""
    save_rows(folder, merge_rows(load_rows(folder / "evaluation.json"), rows))


def _facts(
    loaded: LoadedBackbone,
    data: str | Path,
    opened: tuple[LabelledImages, LabelledImages | None],
    cache: FeatureCache,
) -> dict[str, str]:
    """Return weights, locations and identities for the rows of results.

    Raises:
        ValueError: On all ranks: they differ in code, weights or images.

    """
    raise_on_disagreement(partial(_inputs, loaded, opened))
    with distributed.work_alone():
        identities = distributed.from_main(lambda: _identities(data, opened, cache))
    return {"weights": weights_digest(loaded.backbone)[:12], **identities}


def _inputs(loaded: LoadedBackbone, opened: tuple[LabelledImages, LabelledImages | None]) -> dict[str, str]:
    """Return digests of what must be the same on all ranks."""
    sets = [images for images in opened if images is not None]
    return {
        "code": code_version(),
        "weights": weights_digest(loaded.backbone),
        "images": " ".join(hash_names(image_names(images.reader.source)) for images in sets),
        "labels": hashlib.sha256(repr([(images.labels, images.class_names) for images in sets]).encode()).hexdigest(),
    }


def _identities(
    data: str | Path, opened: tuple[LabelledImages, LabelledImages | None], cache: FeatureCache
) -> dict[str, str]:
    """Return locations and identities for the rows of results; warn of test images that are training images.

    Called on the main rank alone.

    Location and identity of a held-out part are empty.
    """
    train, tested = opened
    identities = [cache.identity(images.reader.source) for images in (train, tested) if images is not None]
    warn_of_overlap(train, tested, identities)
    return {
        "data": absolute_location(str(data)),
        "test": absolute_location(tested.location) if tested is not None else "",
        "data_id": identities[0].digest,
        "test_id": identities[1].digest if tested is not None else "",
    }


def _run_all(
    protocols: Sequence[EvalProtocol], contexts: Sequence[EvalContext]
) -> Iterator[tuple[EvalContext, list[Score]]]:
    """Yield the scores of each protocol on each kind of features that suits it."""
    for protocol in protocols:
        if reason := protocol.reason_to_skip(contexts[0].train):
            if distributed.is_main():
                LOGGER.warning("%s: skipped, since %s", protocol.id, reason)
            continue
        for context in contexts:
            if suits(protocol, context):
                prefix = f"seed {context.seed}: {protocol.id} of {context.extractor.name}"
                context.say(prefix)
                yield context, run_protocol(protocol, replace(context, say=_prefixed(context.say, prefix)))


def suits(protocol: EvalProtocol, context: EvalContext) -> bool:
    """Return True if the protocol can evaluate these features: some need a backbone, which raw pixels lack."""
    return context.extractor.backbone is not None or not protocol.needs_backbone


def _prefixed(say: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda text: say(f"{prefix}: {text}")


def _row(score: Score, context: EvalContext, **facts: str) -> Row:
    """Return the row of a score; `facts` are the row's weights, locations and identities."""
    assert score.labels is not None, "run_protocol sets it"
    suffix = "" if context.precision.name == "fp32" else f",{context.precision.name}"
    return Row(
        protocol=score.protocol + suffix,
        features=context.extractor.name,
        accuracy=score.accuracy,
        seed=context.seed,
        minutes=score.seconds / 60,
        train_images=score.labels,
        test_images=context.test.num_readable,
        chosen=score.chosen,
        unreadable=len(context.train.tally.bad) + len(context.test.tally.bad),
        **facts,
    )


def results_folder(run: str | Path, out: str | Path | None = None) -> Path:
    """Return the folder of the results: `out`, else the run's own, or one named after the backbone file, beside it."""
    if out is not None:
        return Path(out).expanduser()
    path = Path(run).expanduser()
    return path if path.is_dir() else path.with_name(f"{path.stem}_evaluation")
