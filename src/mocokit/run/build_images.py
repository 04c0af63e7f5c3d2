"""Find the images of a run from its config: for training and for the monitor, and the value ranges of their samples."""

from mocokit import distributed
from mocokit.config.schema import Config
from mocokit.data.decode.deep import GIVEN, ValueRanges
from mocokit.data.sources.left_out import note_of
from mocokit.data.sources.open_source import open_source, with_columns
from mocokit.data.sources.sources import ImageSource
from mocokit.data.value_range import MeasuredRanges, measure_ranges
from mocokit.engine.backbone_file import OWN
from mocokit.settings import require


def find_ranges(config: Config, source: ImageSource, recorded: ValueRanges | None) -> MeasuredRanges:
    """Return the value ranges of the images: those that the resumed run recorded, as given, or measured (main rank)."""
    if recorded is not None:
        return MeasuredRanges(ranges=recorded)
    data = config.data
    known = {GIVEN: (data.value_range[0], data.value_range[1])} if data.value_range else {}
    return distributed.from_main(
        lambda: measure_ranges(source, max_image_px=data.max_image_px, seed=config.run.seed, known=known)
    )


def find_source(config: Config, given: ImageSource | None) -> ImageSource:
    """Return the training images: the object that the caller gave, or those at data.source.

    Raises:
        ValueError: There is neither, or nothing that can be read at data.source.

    """
    if given is not None:
        return given
    location = config.data.source
    if not location:
        raise ValueError("data: say where the images are, for example --data my_photos/")
    if location.startswith(OWN):
        raise ValueError(
            f"data.source={location}: the run's images were given as an object; give it again: "
            "mocokit.resume(run, data=...)"
        )
    return distributed.from_first_of_machine(lambda: open_source(_with_columns(config, location)))


def _with_columns(config: Config, location: str) -> str:
    return with_columns(location, label_column=config.data.label_column, path_column=config.data.path_column)


def find_test_source(config: Config, source: ImageSource) -> ImageSource | None:
    """Return the images that the monitor classifies: data.test, or the test part of a split; None without both.

    Raises:
        ValueError: data.test is given, but the training images have no labels.

    """
    test = config.data.test
    if test:
        note = f" ({note_of(source)})" if note_of(source) else ""
        has_labels = source.labels is not None
        require(has_labels, "data.test", test, f"the training images have no labels to vote with{note}")
        is_list = test.lower().endswith((".csv", ".tsv"))
        place = _with_columns(config, test) if is_list else test
        return distributed.from_first_of_machine(lambda: open_source(place, setting="data.test"))
    part = str(getattr(source, "test_part", ""))
    if not part or source.labels is None:
        return None
    return distributed.from_first_of_machine(lambda: open_source(part))
