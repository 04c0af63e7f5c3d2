"""An image source as a torch dataset, to be read by worker processes."""

from typing import Any

from torch.utils.data import Dataset

from mocokit.data.sources.sources import ImageSource


class Reads(Dataset[Any]):
    """Item i is what the source reads at i."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        """As the source gives it."""
        return self.source.read(index)
