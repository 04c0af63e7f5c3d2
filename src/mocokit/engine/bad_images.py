"""Count of the images that could not be read: each is named once, and too many stop the run."""

from collections.abc import Callable, Iterable

from mocokit import distributed
from mocokit.data.batch import BadImage


class BadImageCounter:
    """The distinct bad images of a run so far.

    Args:
        num_images: Size of the data set.
        max_share: Largest share of the data set that may be bad.

    """

    def __init__(self, *, num_images: int, max_share: float) -> None:
        self.num_images = num_images
        self.max_share = max_share
        self._known: dict[int, BadImage] = {}
        self._new: dict[int, BadImage] = {}

    def add(self, bad: Iterable[BadImage]) -> None:
        """Record the bad images of a batch; no communication."""
        for image in bad:
            if image.index not in self._known:
                self._new[image.index] = image

    def exchange(self) -> list[BadImage]:
        """Exchange new bad images between ranks; return those that no rank had seen before the last call.

        All ranks must call it: it is a collective, and they all get the same list, in order of the image's index.
        """
        found = {image.index: image for part in distributed.all_gather_objects(self._new) for image in part.values()}
        new = [image for index, image in sorted(found.items()) if index not in self._known]
        self._known.update(found)
        self._new.clear()
        return new

    def tell_new(self, tell: Callable[..., object]) -> None:
        """Exchange new bad images between ranks and tell each: the first of the run on the screen, all in the log.

        Args:
            tell: Called with a line, and show=False if it is for the log alone.

        Raises:
            ValueError: More than `max_share` of the data set is bad; after the log names them all.

        """
        is_first = not self._known
        for image in self.exchange():
            tell(f"bad image {image.name}: {image.reason}; replaced by another", show=is_first)
            is_first = False
        self.require_few()

    def summary(self) -> str:
        """Return a sentence on the bad images of the run so far; empty if there are none."""
        if not self._known:
            return ""
        count = f"{len(self._known):,} of {self.num_images:,} images"
        return f"{count} could not be read, and others took their places; log.txt names them"

    def require_few(self) -> None:
        """Raise ValueError if more than `max_share` of the data set is bad, as far as all ranks know."""
        if len(self._known) > self.max_share * self.num_images:
            examples = "; ".join(f"{image.name} ({image.reason})" for image in list(self._known.values())[:3])
            raise ValueError(
                f"data.max_bad_share={self.max_share}: {len(self._known)} of {self.num_images} images can't be used, "
                f"for example {examples}; remove or repair them (log.txt names each), or allow a larger share"
            )
