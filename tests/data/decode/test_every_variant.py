"""Every kind of TIFF, PNG and JPEG is read as the array that was written, or refused by name; none silently differs.

The files are written byte by byte (written_files.py), by tifffile and by Pillow. The oracle (variants.py) maps the
written array to 8 bits value by value, and turns it upright by index arithmetic.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from mocokit.data.decode.decode import DecodeError, decode
from mocokit.data.decode.deep import GIVEN
from mocokit.data.decode.jpeg import decode_jpeg, read_jpeg_header
from tests.data.decode.photo_variants import jpegs, pngs, pnms, turned_files
from tests.data.decode.tiff_variants import (
    alpha_tiffs,
    library_tiffs,
    other_tiffs,
    packed_tiffs,
    plain_tiffs,
    refused_tiffs,
)
from tests.data.decode.variants import HIGH, LOW, Variant

FAMILIES: dict[str, tuple[Callable[[], Iterator[Variant]], int, int]] = {
    "plain_tiffs": (plain_tiffs, 540, 0),
    "turned_files": (turned_files, 128, 0),
    "packed_tiffs": (packed_tiffs, 88, 0),
    "alpha_tiffs": (alpha_tiffs, 26, 32),
    "other_tiffs": (other_tiffs, 38, 0),
    "refused_tiffs": (refused_tiffs, 0, 36),
    "library_tiffs": (library_tiffs, 281, 1),
    "pngs": (pngs, 80, 0),
    "pnms": (pnms, 7, 1),
    "jpegs": (jpegs, 348, 0),
}
"""Name -> (its variants, how many are read, how many are refused)."""


def judge(variant: Variant) -> str:
    """Return "equal", "refused", or a sentence on how the result differs."""
    try:
        image = decode(variant.raw, max_image_px=10**6, ranges={GIVEN: (LOW, HIGH)})
    except DecodeError as error:
        if variant.expected is not None:
            return f"{variant.name}: refused ({error})"
        return "refused" if re.search(variant.reason, str(error)) else f"{variant.name}: refused for {error}"
    if variant.expected is None:
        return f"{variant.name}: read, though it should be refused"
    seen = np.asarray(image)
    if seen.shape != variant.expected.shape:
        return f"{variant.name}: {seen.shape}, written {variant.expected.shape}"
    difference = np.abs(seen.astype(int) - variant.expected.astype(int))
    if (difference.mean() if variant.tolerance else difference.max()) > variant.tolerance:
        return f"{variant.name}: differs by {difference.mean():.1f} on average, {difference.max()} at most"
    header = read_jpeg_header(variant.raw)
    if header is not None and not np.array_equal(decode_jpeg(variant.raw, header, fraction=1), seen):
        return f"{variant.name}: the fast JPEG reader differs"
    return "equal"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_is_read_as_written_or_refused_by_name(family: str) -> None:
    make, num_equal, num_refused = FAMILIES[family]
    verdicts = Counter(judge(variant) for variant in make())
    assert verdicts == Counter({"equal": num_equal, "refused": num_refused}) - Counter()


def test_there_are_at_least_400_variants() -> None:
    assert sum(equal + refused for _, equal, refused in FAMILIES.values()) >= 400
