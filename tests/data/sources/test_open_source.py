"""Image sources from outside the package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.augment.recipes import AUG_PLUS
from mocokit.data.batch import ViewBatch
from mocokit.data.loading.loader import BatchOrder, build_loader
from mocokit.data.sources.identity import identify
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.sources import ImageSource
from mocokit.data.views import ImageReader, TwoViews


class Photos:
    """An image source that knows nothing of mocokit: JPEG files, read from disk, with labels."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))
        self.class_names = tuple(sorted({path.parent.name for path in self.paths}))
        self.labels = tuple(self.class_names.index(path.parent.name) for path in self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def read(self, index: int) -> bytes:
        return self.paths[index].read_bytes()


class Squares(ImageSource):
    """A source of gray pixels that inherits names and no labels."""

    def __len__(self) -> int:
        return 20

    def read(self, index: int) -> NDArray[np.uint8]:
        return np.full((32, 32), index, np.uint8)


class Gone(Squares):
    """A source without a readable image."""

    def read(self, index: int) -> NDArray[np.uint8]:
        raise OSError("gone")


def _batches(source: ImageSource, *, num_workers: int) -> list[ViewBatch]:
    order = BatchOrder(
        num_images=len(source), global_batch_size=8, own_rows=range(8), start_step=0, total_steps=2, seed=3
    )
    views = TwoViews(ImageReader(source, max_image_px=10**6, seed=3), AUG_PLUS, size_px=32, seed=3, pipeline="fast")
    return list(build_loader(views, order, num_workers=num_workers))


def test_an_own_source_gives_the_batches_of_the_folder_that_it_reads(photos: Path) -> None:
    own = open_source(Photos(photos))
    folder = open_source(photos)
    assert (own.labels, own.class_names) == (folder.labels, folder.class_names)
    for a, b in zip(_batches(own, num_workers=2), _batches(folder, num_workers=0), strict=True):
        assert torch.equal(a.query, b.query)
        assert torch.equal(a.key, b.key)


def test_a_list_of_decoded_images_gives_the_batches_of_their_files(photos: Path) -> None:
    decoded = open_source([Image.open(path) for path in sorted(photos.rglob("*.jpg"))])
    for a, b in zip(_batches(decoded, num_workers=0), _batches(open_source(photos), num_workers=0), strict=True):
        assert torch.equal(a.image_ids, b.image_ids)
        # Files are decoded at a fraction of their size where a view needs no more pixels; these are tiles of 48 px.
        assert torch.equal(a.query, b.query)


def test_a_subclass_needs_only_len_and_read() -> None:
    source = open_source(Squares())
    assert [source.name(index) for index in (0, 19)] == ["0", "19"]
    assert (source.labels, source.class_names) == (None, ())
    assert len(_batches(source, num_workers=0)) == 2
    assert identify(source).digest == identify(open_source(Squares())).digest


def test_a_subclass_without_read_can_not_be_made() -> None:
    class Unfinished(ImageSource):
        def __len__(self) -> int:
            return 1

    with pytest.raises(TypeError, match="abstract method"):
        Unfinished()  # type: ignore[abstract]


def test_an_open_source_is_returned_as_it_is(photos: Path) -> None:
    source = open_source(photos)
    assert open_source(source) is source


class Rows:
    """A source whose attributes a test chooses."""

    labels: Any = None
    class_names: Any = ("cat", "dog")
    image: Any = b"bytes"

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return 2

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> Any:
        return self.image


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"labels": (0,)}, "labels must be None or a tuple of 2 ints, each an index into class_names"),
        ({"labels": (0, 2)}, "labels must be None or a tuple of 2 ints"),
        ({"labels": (-1, 0)}, "labels must be None or a tuple of 2 ints"),
        ({"labels": [0, 1]}, "labels must be None or a tuple of 2 ints"),
        ({"labels": (np.int64(0), np.int64(1))}, "labels must be None or a tuple of 2 ints"),
        ({"image": Image.new("RGB", (4, 4))}, r"read\(0\) gives a Image; must be bytes or a uint8 array"),
        ({"image": np.zeros((3, 4, 4), np.float32)}, r"read\(0\) gives a float32 array \(3, 4, 4\)"),
        ({"name": lambda index: index}, r"name\(0\) must be a string"),
        ({"hook": lambda: None}, r"can't be pickled, which loader workers need \(.*; .* open files .* in read\(\)"),
    ],
)
def test_a_source_that_breaks_the_contract_is_an_error(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^data=Rows\(\.\.\.\): {message}"):
        open_source(Rows(**attributes))


def test_a_source_with_good_labels_opens() -> None:
    assert open_source(Rows(labels=(1, 0))).labels == (1, 0)


def test_a_source_whose_first_image_is_bad_opens() -> None:
    assert len(open_source(Gone())) == 20


def test_an_object_that_is_no_source_is_told_what_it_lacks() -> None:
    class Images:
        def __len__(self) -> int:
            return 3

        def name(self, index: int) -> str:
            return str(index)

    with pytest.raises(ValueError, match=r"^data=Images\(\.\.\.\): lacks read\(index\), labels, class_names; give an"):
        open_source(Images())  # type: ignore[arg-type]


def test_a_class_within_a_function_can_not_be_sent_to_workers() -> None:
    class Local(Squares):
        pass

    with pytest.raises(ValueError, match=r"^data=Local\(\.\.\.\): can't be pickled.*define its class in a module"):
        open_source(Local())
