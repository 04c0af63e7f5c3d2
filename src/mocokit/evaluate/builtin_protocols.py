"""The protocols that come with mocokit, as entries of one dict, and the look-up of a protocol by name."""

from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from mocokit import distributed
from mocokit.evaluate.contract import EvalContext, EvalProtocol, Score
from mocokit.evaluate.fast_linear import fast_linear
from mocokit.evaluate.features import LabelledImages
from mocokit.evaluate.finetune import fine_tune_and_test
from mocokit.evaluate.knn import PROTOCOLS, knn_accuracy
from mocokit.evaluate.linear import train_linear
from mocokit.evaluate.protocols import (
    FAST_LINEAR,
    FINETUNE_PROTOCOLS,
    LINEAR_PROTOCOLS,
    FastLinearProtocol,
    FineTuneProtocol,
    LinearProtocol,
)
from mocokit.evaluate.rank_shares import shard_of
from mocokit.evaluate.splits import fraction_of, read_id_list
from mocokit.settings import choose, require

ENTRY_POINT_GROUP = "mocokit.protocols"
"""An installed package offers a protocol as `name = "package.module:OBJECT"`, where OBJECT is an `EvalProtocol`."""


class KnnEvaluation(EvalProtocol):
    """Weighted kNN votes of frozen features, for both settings of k and T."""

    id = "knn"

    def run(self, context: EvalContext) -> list[Score]:
        """Measure the kNN accuracy for each setting; the training images are the bank, which is sharded over ranks."""
        bank = context.train_features
        accuracy = knn_accuracy(
            shard_of(bank),
            context.test_features,
            PROTOCOLS,
            device=context.device,
            bank_is_shard=distributed.world_size() > 1,
        )
        return [
            Score(protocol=f"knn/{setting}", accuracy=value, labels=len(bank.labels))
            for setting, value in accuracy.items()
        ]


@dataclass(frozen=True)
class FastLinearEvaluation(EvalProtocol):
    """A grid of linear classifiers, trained at once on cached features."""

    settings: FastLinearProtocol
    id: str = "linear/fast"

    def run(self, context: EvalContext) -> list[Score]:
        """Choose rate and weight decay on held-out training images, and test the classifier trained with them.

        The main rank trains: on features, it takes less time than the other ranks' help would save.
        """
        train = context.train_features
        test = context.test_features
        settings = self.settings.fitted(len(train.rows), epochs_scale=context.epochs_scale)
        fit = partial(
            fast_linear,
            train,
            test,
            settings,
            num_classes=context.num_classes,
            device=context.device,
            seed=context.seed,
        )
        with distributed.work_alone():
            result = distributed.from_main(fit)
        edge = " (the edge of the grid)" if result.at_the_edge else ""
        chosen = f"lr {result.lr:g}, weight decay {result.weight_decay:g}{edge}"
        return [Score(protocol=str(settings), accuracy=result.accuracy, labels=len(train.labels), chosen=chosen)]


@dataclass(frozen=True)
class LinearEvaluation(EvalProtocol):
    """A published linear protocol: a classifier on the frozen backbone, trained on augmented images."""

    settings: LinearProtocol
    id: str
    needs_backbone: bool = True

    def run(self, context: EvalContext) -> list[Score]:
        """Report the last epoch, and the epoch that is best on the test images, as main_lincls.py does."""
        assert context.extractor.backbone is not None, "raw pixels have no official linear protocol"
        settings = self.settings.fitted(len(context.train.indices), epochs_scale=context.epochs_scale)
        by_epoch = train_linear(
            context.extractor.backbone,
            context.extractor.embed,
            context.train,
            context.test_features,
            settings,
            device=context.device,
            seed=context.seed,
            on_epoch=lambda epoch, accuracy: context.say(
                f"epoch {epoch} of {settings.schedule.epochs}: {accuracy:.1%}"
            ),
        )
        return [
            Score(protocol=str(settings), accuracy=by_epoch[-1]),  # no test image influenced it
            Score(protocol=f"{settings},best-on-test", accuracy=max(by_epoch)),  # main_lincls.py keeps this epoch
        ]


@dataclass(frozen=True)
class FineTuneEvaluation(EvalProtocol):
    """Fine-tuning of the whole network on a part of the labels."""

    settings: FineTuneProtocol
    id: str
    part: str = ""
    """Share of the training images such as "1%", or a file that lists them."""
    needs_backbone: bool = True

    def on_labels(self, part: str) -> EvalProtocol:
        """Return the protocol that trains on this part of the labels."""
        require(bool(part), "protocols", self.id, f"names no part of the labels; give for example {self.id}@1%")
        return replace(self, part=part, id=f"{self.id}@{part}")

    def reason_to_skip(self, train: LabelledImages) -> str:
        """Skip a share of fewer than two labels per class if there are several rates: one trains, and one chooses."""
        if not self.part.endswith("%") or len(self.settings.pairs) == 1:
            return ""
        enough = len(images_of_part(self.part, train, seed=0).indices) >= 2 * len(train.class_names)
        return "" if enough else "it leaves fewer than 2 labels a class to choose a rate with"

    def run(self, context: EvalContext) -> list[Score]:
        """Fine-tune on the part of the labels that the seed draws, and test once."""
        assert context.extractor.backbone is not None, "raw pixels can't be fine-tuned"
        labelled = images_of_part(self.part, context.train, seed=context.seed)
        settings = self.settings.fitted(len(labelled.indices), epochs_scale=context.epochs_scale)
        result = fine_tune_and_test(
            context.extractor.backbone,
            context.extractor.pixels,
            labelled,
            context.test,
            settings,
            device=context.device,
            precision=context.precision,
            seed=context.seed,
            say=context.say,
        )
        chosen = f"lr {result.lr:g}, head x{result.head_multiplier:g}" if len(settings.pairs) > 1 else ""
        name = settings.id_for(Path(self.part).name)
        return [Score(protocol=name, accuracy=result.accuracy, labels=labelled.num_readable, chosen=chosen)]


def images_of_part(part: str, train: LabelledImages, *, seed: int) -> LabelledImages:
    """Return the training images that a share, such as `1%`, or a file of ids stands for.

    Raises:
        ValueError: Not a share, or the file names none of the training images.

    """
    if not part.endswith("%"):
        ids = sorted(set(read_id_list(part, train.reader.source)) & set(train.indices))
        require(bool(ids), "ids", part, "names none of the training images; list their file names or numbers")
        return train.only(ids)
    try:
        share = float(part[:-1])
    except ValueError as error:
        raise ValueError(f"protocols=...@{part}: not a share of the labels; write for example @1%") from error
    return fraction_of(train, share / 100, seed=seed)


BUILTIN_PROTOCOLS: dict[str, EvalProtocol] = {
    protocol.id: protocol
    for protocol in (
        KnnEvaluation(),
        FastLinearEvaluation(FAST_LINEAR),
        *(LinearEvaluation(settings, f"linear/{name}") for name, settings in LINEAR_PROTOCOLS.items()),
        *(FineTuneEvaluation(settings, f"finetune/{name}") for name, settings in FINETUNE_PROTOCOLS.items()),
    )
}


def find_protocol(name: str) -> EvalProtocol:
    """Return the protocol `knn`, `linear/NAME`, `finetune/NAME@P%` or `finetune/NAME@FILE`, or an installed one.

    Only entry points of installed packages are imported, never a module named by the caller. Built-in names take
    precedence over installed ones.

    Raises:
        ValueError: No such protocol; the message lists the known ones.

    """
    family, _, part = name.partition("@")
    known: dict[str, EvalProtocol | EntryPoint] = {
        **{point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)},
        **BUILTIN_PROTOCOLS,
    }
    found = choose("protocols", family, known)
    protocol = found.load() if isinstance(found, EntryPoint) else found
    if not isinstance(protocol, EvalProtocol):
        raise ValueError(f"protocols={name}: {found} is not an EvalProtocol object; mend or uninstall its package")
    return protocol.on_labels(part)
