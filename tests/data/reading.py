"""Torch data set of an image source, to be read by worker processes."""

from typing import Any

from torch.utils.data import Dataset

from mocokit.data.sources.sources import ImageSource


class Reads(Dataset[Any]):
    """Data set whose item i is `source.read(i)`."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        """Image `index` as stored."""
        return self.source.read(index)
