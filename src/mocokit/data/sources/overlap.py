"""Find test images that are training images too, byte for byte.

Only images of equal size are opened, and MAX_HASHED at most (SAMPLED_READS behind a url). An image that was
encoded again is not found.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.content import NOT_SAMPLED, SAMPLED_READS, UNREADABLE, has_checksums, hash_images, is_remote
from mocokit.data.sources.identity import DataIdentity
from mocokit.data.sources.objects import ImageList
from mocokit.data.sources.sources import IdxSource, ImageSource
from mocokit.randomness import Purpose, permutation

MAX_HASHED = 2**15
"""Images opened at most, of both sets together: 1.6 GB of reads. All test images are looked at if this suffices."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Number of test images that are training images, among those looked at."""

    num_test: int
    looked_at: int
    """Test images that were compared; those whose size no training image has count as compared."""
    shared: int
    example: str
    """Name of one of them; empty: there is none."""

    def __str__(self) -> str:
        share = self.shared / max(1, self.looked_at)
        percent = f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.2g} %"
        of = f"{self.looked_at:,} test images" + (" looked at" if self.looked_at < self.num_test else "")
        also = "is also a training image" if self.shared == 1 else "are also training images"
        return f"{self.shared:,} of {of} ({percent}) {also}, byte for byte, such as {self.example}"


def find_overlap(
    train: ImageSource, test: ImageSource, train_identity: DataIdentity, test_identity: DataIdentity
) -> Overlap:
    """Return how many test images are training images.

    Args:
        train: Training images.
        test: Test images.
        train_identity: Identity of `train`.
        test_identity: Identity of `test`.

    """
    count = len(test)
    names = test_identity.names
    same_size = np.flatnonzero(np.isin(test_identity.sizes, train_identity.sizes[train_identity.sizes >= 0]))
    if _is_comparable(train, test):
        own = list(zip(train_identity.sizes.tolist(), train_identity.contents.tolist(), strict=True))
        keys = set(own)
        pairs = zip(test_identity.sizes.tolist(), test_identity.contents.tolist(), strict=True)
        found = [index for index, pair in enumerate(pairs) if pair in keys and pair[1] != NOT_SAMPLED]
        chosen = same_size
    else:
        limit = SAMPLED_READS if is_remote(train) or is_remote(test) else MAX_HASHED
        chosen, partners = _choose(same_size, test_identity.sizes, train_identity.sizes, limit)
        hashes = set(hash_images(train, partners.tolist())) - {UNREADABLE}
        found = [
            index
            for index, content in zip(chosen.tolist(), hash_images(test, chosen.tolist()), strict=True)
            if content in hashes
        ]
    looked_at = count if len(chosen) == len(same_size) else len(chosen)
    return Overlap(num_test=count, looked_at=looked_at, shared=len(found), example=names[found[0]] if found else "")


def _is_comparable(train: ImageSource, test: ImageSource) -> bool:
    """Return True if the identities hold hashes of all bytes of both sets, made in the same way."""
    in_memory = isinstance(train, IdxSource | ImageList) and isinstance(test, IdxSource | ImageList)
    return in_memory or (has_checksums(train) and has_checksums(test))


def _choose(
    same_size: NDArray[np.int64], test_sizes: NDArray[np.int64], train_sizes: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions of test images, and of all training images of their sizes, `limit` together."""
    drawn = same_size[permutation(0, Purpose.SUBSET, len(same_size))]
    while True:
        partners = np.flatnonzero(np.isin(train_sizes, test_sizes[drawn]))
        if len(drawn) + len(partners) <= limit or len(drawn) <= 1:
            return np.sort(drawn), partners[:limit]
        drawn = drawn[: len(drawn) // 2]
