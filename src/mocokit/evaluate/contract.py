"""Contract of an evaluation protocol: it gets an `EvalContext`, and returns one `Score` per accuracy it measured.

A protocol from outside the package is handed to `evaluate(..., protocols=["knn", MyProtocol()])`, or is installed under
a name of its own by the entry-point group `mocokit.protocols`.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from mocokit import distributed
from mocokit.engine.precision import Precision
from mocokit.evaluate.baselines import FeatureExtractor
from mocokit.evaluate.feature_cache import FeatureCache
from mocokit.evaluate.features import Features, LabelledImages, are_finite, require_finite


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """Images, features and settings that a protocol gets for one seed and one kind of features."""

    extractor: FeatureExtractor
    """Computes the features to evaluate. Its `backbone` is None for raw pixels."""
    train: LabelledImages
    """Labelled images to train on, for a protocol that needs the images themselves."""
    test: LabelledImages
    """Labelled images to test on."""
    device: torch.device
    precision: Precision
    """Number format of the backbone."""
    cache: FeatureCache
    seed: int
    epochs_scale: float
    """Length of a training, as a multiple of the protocol's own."""
    say: Callable[[str], None]
    """Called with a line of progress."""
    seconds_saved: list[float] = field(default_factory=list, init=False, repr=False)
    """Seconds that the cache saved, one entry per set of features; `run_protocol` adds them to the wall time."""

    @cached_property
    def train_features(self) -> Features:
        """Features and labels of the training images, from the cache if possible."""
        return self.features_of(self.train)

    @cached_property
    def test_features(self) -> Features:
        """Features and labels of the test images, from the cache if possible."""
        return self.features_of(self.test)

    @property
    def num_classes(self) -> int:
        """Number of classes of the training images; labels are 0 .. num_classes-1."""
        return len(self.train.class_names)

    def features_of(self, images: LabelledImages) -> Features:
        """Return the features and labels of some images of `train` or `test`, such as `train.only(indices)`.

        Raises:
            ValueError: A feature is NaN or infinite.

        """
        start = time.perf_counter()
        features = self.extractor.features(images, self.cache, device=self.device)
        self.seconds_saved.append(features.extract_s - (time.perf_counter() - start))
        require_finite(holds=distributed.from_main(lambda: are_finite(features)))
        return features


@dataclass(frozen=True, kw_only=True)
class Score:
    """One accuracy that a protocol measured."""

    protocol: str
    """Id of the result; it should tell the settings that change the number, such as batch size and epochs."""
    accuracy: float
    """On the test images, 0..1."""
    seconds: float = 0.0
    """Duration, including the time to compute the features; set by `run_protocol`."""
    labels: int | None = None
    """Number of labelled images trained on; None: all training images that could be read,
    which `run_protocol` fills in."""
    chosen: str = ""
    """Settings that a held-out part of the training images chose; empty: nothing to choose."""


class EvalProtocol(ABC):
    """One way to measure how good a backbone is. A subclass sets `id` and defines `run`; the rest is optional.

    Example:
        class NearestClassMean(EvalProtocol):
            id = "nearest-class-mean"

            def run(self, context: EvalContext) -> list[Score]:
                train, test = context.train_features, context.test_features
                means = torch.stack([train.rows[train.labels == c].mean(dim=0) for c in range(context.num_classes)])
                nearest = torch.cdist(test.rows, means).argmin(dim=1)
                accuracy = float((nearest == test.labels).float().mean())
                return [Score(protocol=self.id, accuracy=accuracy)]

    """

    id: str
    """Name of the protocol in `protocols=` and in messages."""
    needs_backbone: bool = False
    """True if the protocol can't run on raw pixels, which have no network."""

    @abstractmethod
    def run(self, context: EvalContext) -> list[Score]:
        """Measure the accuracies of one kind of features; any randomness should derive from `context.seed`."""

    def on_labels(self, part: str) -> "EvalProtocol":
        """Return the protocol for the text after `@` in its name: a part of the labels, such as "1%"; "" if absent.

        Raises:
            ValueError: The protocol takes no such part, or needs one.

        """
        if part:
            raise ValueError(f"protocols={self.id}@{part}: trains on all labels; give {self.id}")
        return self

    def reason_to_skip(self, train: LabelledImages) -> str:
        """Return why these labels are too few for the protocol, which is then skipped with a warning; "" to run it."""
        return ""


def run_protocol(protocol: EvalProtocol, context: EvalContext) -> list[Score]:
    """Run one protocol on one kind of features, and fill in the duration and the number of labels.

    It runs on all ranks, which must therefore call this together; the scores are the main rank's.

    The duration is the same whether the features came from the cache or not, up to the machine's speed.

    Raises:
        ValueError: The labels do not suffice for the protocol, or too many images can't be read.

    """
    fresh = replace(context)  # holds no features yet, so that each protocol pays for its own
    start = time.perf_counter()
    scores = protocol.run(fresh)
    seconds = time.perf_counter() - start + sum(fresh.seconds_saved)
    if distributed.is_main():
        for images in (context.train, context.test):
            images.tally.tell()
    labels = context.train.num_readable
    complete = [
        replace(score, seconds=seconds, labels=labels if score.labels is None else score.labels) for score in scores
    ]
    return distributed.all_gather_objects(complete)[0]
