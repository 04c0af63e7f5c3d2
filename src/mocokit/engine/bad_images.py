"""Counts images that could not be read, names each once, and stops the run when there are too many."""

from collections.abc import Iterable

from mocokit import distributed
from mocokit.data.batch import BadImage


class BadImageCounter:
    """The distinct bad images of a run so far.

    Args:
        num_images: Size of the data set.
        max_share: Share of it that may be bad.

    """

    def __init__(self, *, num_images: int, max_share: float) -> None:
        self.num_images = num_images
        self.max_share = max_share
        self._known: dict[int, BadImage] = {}
        self._new: dict[int, BadImage] = {}

    def add(self, bad: Iterable[BadImage]) -> None:
        """Note what a batch reported."""
        for image in bad:
            if image.index not in self._known:
                self._new[image.index] = image

    def share_out(self) -> list[BadImage]:
        """Bad images first seen since the last call, on any rank; every rank must call it.

        Raises:
            ValueError: More than the allowed share of the data set is bad.

        """
        found = {image.index: image for part in distributed.all_gather_objects(self._new) for image in part.values()}
        new = [image for index, image in sorted(found.items()) if index not in self._known]
        self._known.update(found)
        self._new.clear()
        if new and len(self._known) > self.max_share * self.num_images:
            examples = "; ".join(f"{image.name} ({image.reason})" for image in list(self._known.values())[:3])
            raise ValueError(
                f"data.max_bad_share={self.max_share}: {len(self._known)} of {self.num_images} images can't be used, "
                f"for example {examples}; remove or repair them (log.txt names each), or allow a larger share"
            )
        return new
