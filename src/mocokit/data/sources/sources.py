"""The contract of an image source, and the source of image files.

Images are read where they are; nothing is unpacked. Labels come from the layout of the data if it has any; only
evaluation uses them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.left_out import LeftOut
from mocokit.data.sources.limits import read_regular_file

RawImage = bytes | NDArray[np.uint8]
"""The bytes of an image file, or uint8 pixels of shape (H, W) or (H, W, 3), RGB."""


def is_pixels(image: object) -> TypeGuard[NDArray[np.uint8]]:
    """Return True if `image` is a non-empty uint8 array of shape (H, W) or (H, W, 3)."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or not image.size:
        return False
    return image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)


def describe_kind(image: object) -> str:
    """Return the type of an object for messages, and dtype and shape of an array."""
    return f"a {image.dtype} array {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"


class ImageSource(Protocol):
    """A sequence of images that are read by their index, 0 to len - 1.

    Any object with these five members is a source; it need not subclass this class. A subclass must define `__len__`
    and `read`. It inherits numbers as names and no labels; with labels, it overrides `labels` and `class_names` by
    properties. `open_source` checks an object before it is used.

    - An index must give the same image in every run: draws, resume and saved features depend on it. So `read` must
      not be random; augmentation belongs in the recipe.
    - A source may also have `left_out`, a tuple of LeftOut, and `label_note`, a sentence about its labels. Commands
      print them. `test_part` is a location of images that evaluation tests on if the user names none.
    - Several processes and threads read at the same time. Worker processes may get a pickled copy, so the object must
      be picklable: open files and connections in `read`, not in `__init__`, and leave those that stay open out of
      `__getstate__`. (Linux up to Python 3.13 forks workers; macOS, Windows and Python 3.14 send a copy.)

    Example:
        class Scans(ImageSource):
            def __init__(self, folder: Path) -> None:
                self.paths = sorted(folder.glob("*.scan"))

            def __len__(self) -> int:
                return len(self.paths)

            def read(self, index: int) -> NDArray[np.uint8]:
                return np.fromfile(self.paths[index], np.uint8).reshape(512, 512)

        source = open_source(Scans(Path("scans")))

    """

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class number of each image, an index into `class_names`; None without labels."""
        return None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class; empty without labels."""
        return ()

    @abstractmethod
    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return a name that identifies the image in messages and in the fingerprint of the data."""
        return str(index)

    @abstractmethod
    def read(self, index: int) -> RawImage:
        """Return the image file's bytes, or pixels.

        Raises:
            OSError: The image can't be read. It is counted as a bad image, and another one takes its place.

        """
        ...


@dataclass(frozen=True)
class FileSource:
    """Image files, read by path."""

    root: Path
    names: Sequence[str]
    """Path of each image, relative to `root` or absolute."""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    """Files that were found beside the images and are not used."""
    label_note: str = ""
    """Where the labels come from if that is not plain, or why there are none."""
    test_part: str = ""
    """Location of the images to test on, if the data is a split of which these images are the training part."""

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the file's path."""
        return str(self.root / self.names[index])

    def read(self, index: int) -> bytes:
        """Return the file's bytes; raise OSError like `read_regular_file`."""
        return read_regular_file(self.root / self.names[index])
