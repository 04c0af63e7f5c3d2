"""Find test images that are training images too, byte for byte.

Only images of equal size are opened, and as many as MAX_HASHED and MAX_BYTES allow (SAMPLED_READS behind a url). An
image that was encoded again is not found.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.content import (
    NOT_SAMPLED,
    SAMPLED_READS,
    UNREADABLE,
    WHOLE_BYTES,
    has_checksums,
    hash_images,
    is_in_memory,
    is_remote,
)
from mocokit.data.sources.identity import DataIdentity
from mocokit.data.sources.sources import ImageSource
from mocokit.randomness import Purpose, permutation

MAX_HASHED = 2**18
"""Images opened at most, of both sets together."""
MAX_BYTES = 2**31
"""Bytes read at most: an image that is not inside a zip file counts WHOLE_BYTES at most."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Number of test images that are training images, among those looked at."""

    num_test: int
    looked_at: int
    """Test images that were compared; those whose size no training image has count as compared."""
    shared: int
    example: str
    """Name of one of them; empty: there is none."""
    at_least: bool = False
    """True if only a part of the training images of equal size was compared."""

    def __str__(self) -> str:
        share = self.shared / max(1, self.looked_at)
        percent = f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.2g} %"
        of = f"{self.looked_at:,} test images" + (" looked at" if self.looked_at < self.num_test else "")
        also = "is also a training image" if self.shared == 1 else "are also training images"
        least = "at least " if self.at_least else ""
        return f"{least}{self.shared:,} of {of} ({percent}) {also}, byte for byte, such as {self.example}"


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
    sizes = test_identity.sizes
    same_size = np.flatnonzero(np.isin(sizes, train_identity.sizes[train_identity.sizes >= 0]))
    chosen = same_size
    partial = False
    if _is_comparable(train, test):
        known = zip(sizes.tolist(), test_identity.contents.tolist(), strict=True)
        keys = set(zip(train_identity.sizes.tolist(), train_identity.contents.tolist(), strict=True))
        found = [index for index, key in enumerate(known) if key in keys and key[1] != NOT_SAMPLED]
    else:
        limit = SAMPLED_READS if is_remote(train) or is_remote(test) else MAX_HASHED
        cap = np.iinfo(np.int64).max if has_checksums(train) or has_checksums(test) else WHOLE_BYTES
        chosen, partners, partial = _choose(same_size, sizes, train_identity.sizes, limit=limit, cap=cap)
        hashes = set(hash_images(train, partners.tolist())) - {UNREADABLE}
        contents = hash_images(test, chosen.tolist())
        found = [index for index, content in zip(chosen.tolist(), contents, strict=True) if content in hashes]
    return Overlap(
        num_test=len(test),
        looked_at=len(test) if len(chosen) == len(same_size) else len(chosen),
        shared=len(found),
        example=test_identity.names[found[0]] if found else "",
        at_least=partial,
    )


def _is_comparable(train: ImageSource, test: ImageSource) -> bool:
    """Return True if the identities hold hashes of all bytes of both sets, made in the same way."""
    return any(known(train) and known(test) for known in (is_in_memory, has_checksums))


def _choose(
    same_size: NDArray[np.int64],
    test_sizes: NDArray[np.int64],
    train_sizes: NDArray[np.int64],
    *,
    limit: int,
    cap: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Return positions of test images and of training images of their sizes, and True if these are not all.

    Args:
        same_size: Test images whose size a training image has.
        test_sizes: Size of every test image.
        train_sizes: Size of every training image.
        limit: Number of images of both sets.
        cap: Bytes that an image counts at most.

    """
    drawn = same_size[permutation(0, Purpose.SUBSET, len(same_size))]
    half = drawn[: limit // 2]
    while True:
        partners = np.flatnonzero(np.isin(train_sizes, test_sizes[drawn]))
        cost = np.minimum(test_sizes[drawn], cap).sum() + np.minimum(train_sizes[partners], cap).sum()
        if len(drawn) + len(partners) <= limit and cost <= MAX_BYTES:
            return np.sort(drawn), partners, False
        if len(drawn) <= 1:
            break
        drawn = drawn[: len(drawn) // 2]
    # So many training images have one size that a single test image has too many to be compared with.
    per_image = max(1, int(np.minimum(test_sizes[half], cap).max()))
    count = max(1, min(limit, MAX_BYTES // per_image) // 2)
    some = partners[permutation(0, Purpose.SUBSET, len(partners), 1)[:count]]
    return np.sort(half[:count]), np.sort(some), True
