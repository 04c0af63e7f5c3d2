"""Count of the images of a labelled set that could not be read: they are told, and too many stop the evaluation.

Unreadable images are left out. If they are of few classes, the accuracy on the rest can even rise, so each class that
lost images is named.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from mocokit.data.batch import BadImage
from mocokit.settings import require

LOGGER = logging.getLogger("mocokit")

MAX_BAD_SHARE = 0.01
"""Largest share of a set that an evaluation leaves out, unless it is told otherwise; that of pre-training too."""

EXAMPLES = 3
"""Images and classes that a message names."""


class ReadTally:
    """The images of one set that could not be read so far.

    Args:
        role: Name of the set in messages, "training" or "test".
        indices: Positions of the set's images in the source.
        labels: Class number of every image of the source.
        class_names: Name of each class.
        max_share: Largest share of the set that may be unreadable.

    """

    def __init__(
        self,
        role: str,
        indices: Sequence[int],
        labels: Sequence[int],
        class_names: Sequence[str],
        *,
        max_share: float,
    ) -> None:
        require(0 <= max_share <= 1, "max_bad_share", max_share, "must be a share of the images, 0 to 1")
        self.role = role
        self.indices = indices
        self.labels = labels
        self.class_names = class_names
        self.max_share = max_share
        self.bad: dict[int, BadImage] = {}
        self._num_told = 0

    def unlimited(self) -> "ReadTally":
        """Return an empty tally of the same set that never raises, for one rank's share of the images."""
        return ReadTally(self.role, self.indices, self.labels, self.class_names, max_share=1.0)

    def add(self, bad: Iterable[BadImage]) -> None:
        """Record images that could not be read.

        Raises:
            ValueError: More than `max_share` of the set can't be read.

        """
        self.bad |= {image.index: image for image in bad}
        if len(self.bad) > self.max_share * len(self.indices):
            raise ValueError(
                f"max_bad_share={self.max_share}: {self}; the accuracy on the others would mean little: repair or "
                "remove them, or allow a larger share"
            )

    def tell(self) -> None:
        """Log a warning if more images could not be read than at the last call."""
        if len(self.bad) > self._num_told:
            self._num_told = len(self.bad)
            LOGGER.warning("%s; they are left out", self)

    def __str__(self) -> str:
        lost = Counter(self.labels[index] for index in self.bad)
        sizes = Counter(self.labels[index] for index in self.indices)
        worst = sorted(lost, key=lambda label: (-lost[label] / max(1, sizes[label]), label))
        classes = [f"{lost[label]} of {sizes[label]} of class {self.class_names[label]}" for label in worst[:EXAMPLES]]
        more = ", ..." if len(worst) > EXAMPLES else ""
        examples = "; ".join(f"{image.name} ({image.reason})" for image in list(self.bad.values())[:EXAMPLES])
        count = f"{len(self.bad):,} of {len(self.indices):,} {self.role} images"
        return f"{count} can't be read ({', '.join(classes)}{more}), for example {examples}"
