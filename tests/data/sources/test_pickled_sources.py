"""Workers that are not forked get a pickled copy of the source, perhaps after the main process has read from it."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from source_kinds import write_sources

from mocokit.data.sources.open_source import ImageData, open_source
from mocokit.data.sources.sources import RawImage


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageData]:
    """Every kind of source, by name."""
    return write_sources(tmp_path_factory.mktemp("sources"), per_class=2)


KINDS = [
    *("folder", "list", "table#label=", "zip", "tar", "tar of tars", "shards", "shards of other tools"),
    *("shards behind a url", "IDX", "CIFAR", "images in memory", "own object"),
]


def _same(a: RawImage, b: RawImage) -> bool:
    return a == b if isinstance(a, bytes) and isinstance(b, bytes) else np.array_equal(a, b)


def test_no_kind_of_source_is_left_out(sources: dict[str, ImageData]) -> None:
    assert list(sources) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_was_read_from_survives_pickling(sources: dict[str, ImageData], kind: str) -> None:
    source = open_source(sources[kind])
    images = [source.read(index) for index in range(len(source))]
    copy = pickle.loads(pickle.dumps(source))
    assert len(images) == len(copy) == 8
    assert all(_same(copy.read(index), image) for index, image in enumerate(images))
    assert [copy.name(index) for index in range(8)] == [source.name(index) for index in range(8)]
    assert (copy.labels, copy.class_names) == (source.labels, source.class_names)
    assert all(_same(source.read(index), image) for index, image in enumerate(images)), "and the source goes on"
    again = pickle.loads(pickle.dumps(copy))  # a copy that was read from
    assert _same(again.read(7), images[7])


def test_a_copy_shares_no_open_file_with_its_source(sources: dict[str, ImageData], tmp_path: Path) -> None:
    for kind in ("zip", "shards", "shards of other tools"):
        source = open_source(sources[kind])
        image = source.read(0)
        copy = pickle.loads(pickle.dumps(source))
        del source  # closes its files
        assert copy.read(0) == image
