"""One table of everything that labels can say about a backbone: kNN, linear classification, fine-tuning."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mocokit.data.loading.loader import choose_workers
from mocokit.data.sources.open_source import absolute_location
from mocokit.engine.backbone_file import load_backbone
from mocokit.engine.precision import Precision, pick_device
from mocokit.evaluate.baselines import Subject, subjects_of, view_of
from mocokit.evaluate.fast_linear import fast_linear
from mocokit.evaluate.feature_cache import FeatureCache
from mocokit.evaluate.features import LabelledImages
from mocokit.evaluate.finetune import fine_tune_and_test
from mocokit.evaluate.frozen import weights_digest
from mocokit.evaluate.knn import PROTOCOLS, knn_accuracy
from mocokit.evaluate.linear import train_linear
from mocokit.evaluate.protocols import FAST_LINEAR, FINETUNE_PROTOCOLS, LINEAR_PROTOCOLS
from mocokit.evaluate.results import Row, load_rows, merge_rows, save_rows
from mocokit.evaluate.splits import fraction_of, open_labelled, read_id_list, train_and_test
from mocokit.settings import choose

LOGGER = logging.getLogger("mocokit")

STANDARD = ("knn", "linear/fast", "finetune/lr-grid@1%", "finetune/lr-grid@10%")
"""What `mocokit evaluate` runs."""

ALL = (*STANDARD, "linear/moco", "finetune/lr-grid@100%")
"""The same with the two that train on all images for many epochs."""


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What every protocol of one seed shares."""

    train: LabelledImages
    test: LabelledImages
    device: torch.device
    precision: Precision
    cache: FeatureCache
    seed: int
    epochs_scale: float
    """Length of every training over that of its protocol."""
    say: Callable[[str], None]
    """Told what is going on."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one protocol found."""

    protocol: str
    accuracy: float
    seconds: float
    labels: int
    """Images with labels that were trained on."""
    chosen: str = ""


def applies(protocol: str, subject: Subject) -> bool:
    """Whether a protocol makes sense for these features: pixels are judged by kNN and the fast linear classifier."""
    return subject.backbone is not None or protocol in {"knn", "linear/fast"}


def check_protocol(protocol: str) -> tuple[str, str, str]:
    """(kind, name, part of the labels) of `knn`, `linear/fast`, `linear/NAME`, `finetune/NAME@P%` or `...@FILE`.

    Raises:
        ValueError: No such protocol; the message lists those that exist.

    """
    kind, _, name = protocol.partition("/")
    name, _, part = name.partition("@")
    if protocol in {"knn", "linear/fast"}:
        return kind, name, ""
    if kind == "linear" and not part:
        choose("protocol", name, LINEAR_PROTOCOLS)
    elif kind == "finetune" and part:
        choose("protocol", name, FINETUNE_PROTOCOLS)
    else:
        raise ValueError(
            f"protocols={protocol}: unknown; give knn, linear/fast, linear/NAME with one of {list(LINEAR_PROTOCOLS)}, "
            f"or finetune/NAME@P% with one of {list(FINETUNE_PROTOCOLS)}, for example finetune/lr-grid@1%"
        )
    return kind, name, part


def examine(protocol: str, subject: Subject, exam: Exam) -> list[Score]:
    """Judge one kind of features by one protocol, which `check_protocol` explains.

    Raises:
        ValueError: No such protocol, or the labels do not suffice for it.

    """
    kind, name, part = check_protocol(protocol)
    if kind == "knn":
        return _knn(subject, exam)
    if name == "fast":
        return _fast_linear(subject, exam)
    if kind == "linear":
        return _linear(name, subject, exam)
    return _fine_tuning(name, part, subject, exam)


def lacks_labels(protocol: str, train: LabelledImages) -> bool:
    """Whether the protocol has to choose a rate but has fewer than two labels a class to do so."""
    kind, name, part = check_protocol(protocol)
    if kind != "finetune" or not part.endswith("%") or len(FINETUNE_PROTOCOLS[name].pairs) == 1:
        return False
    return len(_labelled(part, train, seed=0).indices) < 2 * len(train.class_names)


def _labelled(part: str, train: LabelledImages, *, seed: int) -> LabelledImages:
    """The part of the labels that `1%`, or a file of ids, stands for."""
    if not part.endswith("%"):
        ids = sorted(set(read_id_list(part, train.reader.source)) & set(train.indices))
        if not ids:
            raise ValueError(f"ids={part}: names none of the training images")
        return train.only(ids)
    try:
        share = float(part[:-1])
    except ValueError as error:
        raise ValueError(f"protocols=...@{part}: not a share of the labels; write for example @1%") from error
    return fraction_of(train, share / 100, seed=seed)


def _knn(subject: Subject, exam: Exam) -> list[Score]:
    start = time.perf_counter()
    bank, queries = (subject.features(images, exam.cache, device=exam.device) for images in (exam.train, exam.test))
    read = time.perf_counter() - start
    accuracy = knn_accuracy(bank, queries, PROTOCOLS, device=exam.device)
    seconds = time.perf_counter() - start - read + bank.extract_s + queries.extract_s
    return [
        Score(protocol=f"knn/{protocol}", accuracy=value, seconds=seconds, labels=len(bank.labels))
        for protocol, value in accuracy.items()
    ]


def _fast_linear(subject: Subject, exam: Exam) -> list[Score]:
    train, test = (subject.features(images, exam.cache, device=exam.device) for images in (exam.train, exam.test))
    protocol = FAST_LINEAR.fitted(len(train.rows), epochs_scale=exam.epochs_scale)
    start = time.perf_counter()
    result = fast_linear(
        train, test, protocol, num_classes=len(exam.train.class_names), device=exam.device, seed=exam.seed
    )
    seconds = time.perf_counter() - start + train.extract_s + test.extract_s
    chosen = f"lr {result.lr:g}, weight decay {result.weight_decay:g}"
    if result.at_the_edge:
        chosen += " (the edge of the grid)"
    return [
        Score(
            protocol=str(protocol), accuracy=result.accuracy, seconds=seconds, labels=len(train.labels), chosen=chosen
        )
    ]


def _linear(name: str, subject: Subject, exam: Exam) -> list[Score]:
    assert subject.backbone is not None, "raw pixels have no official linear protocol"
    protocol = LINEAR_PROTOCOLS[name].fitted(len(exam.train.indices), epochs_scale=exam.epochs_scale)
    test = subject.features(exam.test, exam.cache, device=exam.device)
    epochs = protocol.schedule.epochs
    start = time.perf_counter()
    result = train_linear(
        subject.backbone,
        subject.embed,
        exam.train,
        test,
        protocol,
        device=exam.device,
        seed=exam.seed,
        on_epoch=lambda epoch, accuracy: exam.say(f"epoch {epoch} of {epochs}: {accuracy:.1%}"),
    )
    seconds = time.perf_counter() - start + test.extract_s
    labels = len(exam.train.indices)
    return [
        Score(protocol=str(protocol), accuracy=result.last, seconds=seconds, labels=labels),
        Score(protocol=f"{protocol},best-on-test", accuracy=result.best, seconds=seconds, labels=labels),
    ]


def _fine_tuning(name: str, part: str, subject: Subject, exam: Exam) -> list[Score]:
    assert subject.backbone is not None, "raw pixels can't be fine-tuned"
    labelled = _labelled(part, exam.train, seed=exam.seed)
    protocol = FINETUNE_PROTOCOLS[name].fitted(len(labelled.indices), epochs_scale=exam.epochs_scale)
    start = time.perf_counter()
    result = fine_tune_and_test(
        subject.backbone,
        subject.pixels,
        labelled,
        exam.test,
        protocol,
        device=exam.device,
        precision=exam.precision,
        seed=exam.seed,
        say=exam.say,
    )
    return [
        Score(
            protocol=protocol.id_for(Path(part).name),
            accuracy=result.accuracy,
            seconds=time.perf_counter() - start,
            labels=len(labelled.indices),
            chosen=f"lr {result.lr:g}, head x{result.head_multiplier:g}" if len(protocol.pairs) > 1 else "",
        )
    ]


def evaluate(
    run: str | Path,
    *,
    data: str | Path,
    test: str | Path | None = None,
    protocols: Sequence[str] = STANDARD,
    baselines: bool = True,
    seeds: Sequence[int] = (0,),
    epochs_scale: float = 1.0,
    num_workers: int = -1,
    device_name: str = "auto",
    precision_name: str = "fp32",
    say: Callable[[str], None] = lambda _text: None,
    on_rows: Callable[[list[Row]], None] = lambda _rows: None,
) -> list[Row]:
    """Judge a run by several protocols and write `evaluation.json` and `evaluation.md` into its folder as rows come.

    Args:
        run: Run folder or backbone file.
        data: Labelled images to train on.
        test: Labelled images to test on; None: a tenth of `data`, held out.
        protocols: See `check_protocol`; those that need more labels than there are, are skipped with a warning.
        baselines: Also judge raw pixels and a random-init backbone, where that makes sense.
        seeds: Each is an evaluation of its own: subsets, crops, order, first weights, random-init backbone.
        epochs_scale: Length of every training over that of its protocol; the ids tell the epochs.
        num_workers: Loader processes; 0: threads; -1: threads on a CPU, else the cores.
        device_name: auto, cpu, cuda or cuda:N.
        precision_name: Number format of the backbone: fp32 or bf16.
        say: Told what is going on.
        on_rows: Told the new rows of each protocol.

    Returns:
        The new rows; the files hold those of earlier calls on the same weights too.

    """
    for protocol in protocols:
        check_protocol(protocol)
    loaded = load_backbone(run)
    device = pick_device(device_name, local_rank=0)
    precision = Precision(precision_name, device)
    folder = results_folder(run)
    digest = weights_digest(loaded.backbone)[:12]
    places = {"data": absolute_location(str(data)), "test": absolute_location(str(test)) if test else ""}
    num_workers = choose_workers(num_workers, threads_suffice=device.type == "cpu", location=str(data))
    opened = open_labelled(data, test, view_of(loaded.card, num_workers=num_workers))
    cache = FeatureCache(folder / "features")
    rows = list[Row]()
    for seed in seeds:
        train_images, test_images = train_and_test(*opened, seed=seed)
        subjects = subjects_of(loaded, baselines=baselines, device=device, seed=seed, precision=precision)
        exam = Exam(
            train=train_images,
            test=test_images,
            device=device,
            precision=precision,
            seed=seed,
            cache=cache,
            epochs_scale=epochs_scale,
            say=say,
        )
        for subject, scores in _examine_all(protocols, subjects, exam):
            new = [_row(score, subject, exam, weights=digest, **places) for score in scores]
            rows += new
            save_rows(folder, merge_rows(load_rows(folder / "evaluation.json"), rows))
            on_rows(new)
    return rows


def _row(score: Score, subject: Subject, exam: Exam, *, weights: str, data: str, test: str) -> Row:
    suffix = "" if exam.precision.name == "fp32" else f",{exam.precision.name}"
    return Row(
        protocol=score.protocol + suffix,
        features=subject.name,
        accuracy=score.accuracy,
        seed=exam.seed,
        minutes=score.seconds / 60,
        train_images=score.labels,
        test_images=len(exam.test.indices),
        chosen=score.chosen,
        weights=weights,
        data=data,
        test=test,
    )


def _examine_all(
    protocols: Sequence[str], subjects: Sequence[Subject], exam: Exam
) -> Iterator[tuple[Subject, list[Score]]]:
    for protocol in protocols:
        if lacks_labels(protocol, exam.train):
            LOGGER.warning("%s: skipped, since it leaves fewer than 2 labels a class to choose a rate with", protocol)
            continue
        for subject in subjects:
            if applies(protocol, subject):
                prefix = f"seed {exam.seed}: {protocol} of {subject.name}"
                exam.say(prefix)
                yield subject, examine(protocol, subject, replace(exam, say=_prefixed(exam.say, prefix)))


def _prefixed(say: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda text: say(f"{prefix}: {text}")


def results_folder(run: str | Path) -> Path:
    """A run's own folder; beside a backbone file, one named after it."""
    path = Path(run).expanduser()
    return path if path.is_dir() else path.with_name(f"{path.stem}_evaluation")
