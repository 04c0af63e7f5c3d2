"""Measure the value range of samples of more than 8 bits over a data set, so that all its images are mapped alike.

The range of a sample type runs from the LOW_PERCENT to the HIGH_PERCENT percentile of its values: the type's maximum
would leave a 12-bit X-ray in 16-bit samples only 16 gray levels, and the largest value of all may be one hot pixel.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mocokit.data.decode.decode import DecodeError, decode_samples, looks_deep
from mocokit.data.decode.deep import GIVEN, DeepPixels, ValueRanges, map_samples
from mocokit.data.decode.tiff_tags import has_more_pages, is_tiff
from mocokit.data.sources.names import Names
from mocokit.data.sources.sources import RawImage
from mocokit.data.sources.suffixes import suffix_of
from mocokit.randomness import Purpose, generator, permutation

LOW_PERCENT = 0.1
HIGH_PERCENT = 99.9

MAX_IMAGES = 100
"""Images of more than 8 bits that are measured."""
MAX_LOOKED_AT = 200
"""Images that are looked at to find them; of 8-bit ones only the header is read."""
VALUES_PER_IMAGE = 10_000
"""Values drawn from an image."""
MIN_LONELY_SHARE = 0.001
"""Share of a lowest or highest value, far from all others, that the user is told about."""
FEW_LEVELS = 64
"""With fewer gray levels than this, the user is warned."""

EIGHT_BIT_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif"}
"""Suffixes of files that are not looked at. One that has more bits all the same is a bad image without a range."""


class NumberedImages(Protocol):
    """Images by number: an ImageSource, or a part of it."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the name of an image."""
        ...

    def read(self, index: int) -> RawImage:
        """Return an image as stored."""
        ...


@dataclass(frozen=True, kw_only=True)
class MeasuredRanges:
    """Value ranges of a data set, and lines that tell the user about them."""

    ranges: ValueRanges
    notes: tuple[str, ...] = ()
    """The ranges in words."""
    warnings: tuple[str, ...] = ()
    """Ranges that leave few gray levels."""

    def lines_beside(self, known: ValueRanges) -> tuple[str, ...]:
        """Return the lines to tell a user whose backbone has the ranges `known`: all if some were measured now."""
        return self.warnings if self.ranges == known else (*self.notes, *self.warnings)


NO_DEEP_IMAGES = MeasuredRanges(ranges={})


@dataclass(frozen=True, kw_only=True)
class _Sample:
    values: NDArray[Any]
    """Values drawn from one image, without those that hold no data."""
    lost: float
    """Share of values without data."""


def measure_ranges(source: NumberedImages, *, max_image_px: int, seed: int, known: ValueRanges) -> MeasuredRanges:
    """Return a value range for each sample type of more than 8 bits among the images.

    The images and values are drawn at random from `seed` alone, so every process measures the same.

    Args:
        source: The images.
        max_image_px: Larger images are left out.
        seed: Seed of the draw.
        known: Ranges to keep: given by the user, or of the run whose backbone is used. Only other types are measured.

    """
    samples: dict[str, list[_Sample]] = {}
    pages = PageCount()
    for index, deep in _deep_images(source, max_image_px, seed, pages):
        samples.setdefault(deep.sample_type, []).append(_draw(deep, index, seed))
    ranges = dict(known)
    notes = list[str]()
    warnings = pages.warnings()
    for sample_type, found in sorted(samples.items()):
        parts = [sample.values for sample in found if len(sample.values)]
        if not parts:
            warnings.append(f"{sample_type} samples: no image of the {len(found)} measured holds data")
            continue
        values = np.concatenate(parts)
        is_known = GIVEN in ranges or sample_type in ranges
        low, high = ranges[GIVEN if GIVEN in ranges else sample_type] if is_known else _percentiles(values)
        if not is_known:
            ranges[sample_type] = low, high
        told, warned = _tell(sample_type, found, values, low, high, is_known=is_known)
        notes.append(told)
        warnings += warned
    return MeasuredRanges(ranges=ranges, notes=tuple(notes), warnings=tuple(warnings))


@dataclass
class PageCount:
    """Number of TIFF files looked at, and of those with further pages, which are not read."""

    files: int = 0
    with_more: int = 0
    example: str = ""

    def add(self, raw: RawImage, name: str) -> None:
        """Count a file if it is a TIFF."""
        if isinstance(raw, np.ndarray) or not is_tiff(raw):
            return
        self.files += 1
        if has_more_pages(raw):
            self.with_more += 1
            self.example = self.example or name

    def warnings(self) -> list[str]:
        """Return a warning if some have further pages."""
        if not self.with_more:
            return []
        return [
            f"data: {self.with_more:,} of {self.files:,} sampled TIFF files have several pages, for example "
            f"{self.example}; only the first page of each is read: write those that you want as files of their own"
        ]


def _deep_images(
    source: NumberedImages, max_image_px: int, seed: int, pages: PageCount
) -> Iterator[tuple[int, DeepPixels]]:
    """Yield (index, samples) of up to MAX_IMAGES images that need a range, in random order; count pages of TIFFs."""
    looked_at = 0
    found = 0
    names = getattr(source, "names", None)
    name_of = names.__getitem__ if isinstance(names, Names) else source.name  # the whole path takes longer to make
    for position in permutation(seed, Purpose.VALUE_RANGE, len(source)).tolist():
        if suffix_of(name_of(position)) in EIGHT_BIT_SUFFIXES:
            continue
        looked_at += 1
        try:
            raw = source.read(position)
            pages.add(raw, source.name(position))
            if looks_deep(raw):
                pixels = decode_samples(raw, max_image_px=max_image_px)
                if isinstance(pixels, DeepPixels):
                    found += 1
                    yield position, pixels
        except (DecodeError, OSError):
            continue  # a bad image, which is counted where it is used
        if looked_at == MAX_LOOKED_AT or found == MAX_IMAGES:
            return


def _draw(deep: DeepPixels, index: int, seed: int) -> _Sample:
    """Draw values from one image: all of a small one, else VALUES_PER_IMAGE at random places."""
    valid = deep.has_data()
    if deep.alpha is not None:
        valid &= (deep.alpha > 0)[..., None]
    flat = deep.samples.reshape(-1)
    if len(flat) <= VALUES_PER_IMAGE:
        places = np.arange(len(flat))
    else:
        places = generator(seed, Purpose.VALUE_RANGE, 1, index).integers(len(flat), size=VALUES_PER_IMAGE)
    kept = valid.reshape(-1)[places]
    return _Sample(values=flat[places][kept], lost=1.0 - float(kept.mean()))


def _percentiles(values: NDArray[Any]) -> tuple[float, float]:
    """Return (low, high); they differ, and one value alone becomes black."""
    low, high = (float(value) for value in np.percentile(values.astype(np.float64), [LOW_PERCENT, HIGH_PERCENT]))
    if low == high:  # almost all values are equal: use the few others
        low = float(values.min())
        high = float(values.max())
    return (low, high) if low < high else (low, low + 1.0)


def _tell(
    sample_type: str, found: Sequence[_Sample], values: NDArray[Any], low: float, high: float, *, is_known: bool
) -> tuple[str, list[str]]:
    """Return a line about the range of a type, and warnings."""
    clipped = float(np.mean((values < low) | (values > high)))
    lost = float(np.mean([sample.lost for sample in found]))
    levels = len(np.unique(map_samples(values, low, high)))
    warnings = [] if is_known else _lonely_ends(sample_type, values)
    origin = "as given" if is_known else "measured"
    told = (
        f"{sample_type} samples: {low:g} to {high:g} become 0 to 255 ({origin}; in {len(found)} sampled images "
        f"{100 * clipped:.2g} % of the values are clipped, {100 * lost:.2g} % hold no data)"
    )
    if levels >= FEW_LEVELS:
        return told, warnings
    warning = (
        f"data.value_range: {low:g} to {high:g} leaves {levels} of 256 levels of the {sample_type} samples; give one "
        "that fits them by --data.value-range LOW HIGH (pack: --value-range), or check that these are images"
    )
    return told, [*warnings, warning]


def _lonely_ends(sample_type: str, values: NDArray[Any]) -> list[str]:
    """Return a warning if the lowest or highest value is frequent and far from all others: it may mean "no data".

    GDAL_NODATA says so in a TIFF, but not every program writes it.
    """
    found, counts = np.unique(values, return_counts=True)
    if len(found) < FEW_LEVELS:
        return []
    ends = {"lowest": (0, found[1:]), "highest": (-1, found[:-1])}
    for which, (end, others) in ends.items():
        low, high = float(others[0]), float(others[-1])
        gap = low - float(found[end]) if which == "lowest" else float(found[end]) - high
        share = counts[end] / len(values)
        if share > MIN_LONELY_SHARE and gap > high - low:
            return [
                f"data.value_range: {100 * share:.2g} % of the {sample_type} values are {float(found[end]):g}, far "
                f"from the others, which are {low:g} to {high:g}; if that means no data, give their range: "
                f"--data.value-range {low:g} {high:g} (pack: --value-range)"
            ]
    return []


def is_range(low: float, high: float) -> bool:
    """Return True if these are the ends of a value range."""
    return math.isfinite(low) and math.isfinite(high) and low < high


def check_ranges(ranges: object) -> dict[str, tuple[float, float]]:
    """Return value ranges from a file that anybody may have written.

    Raises:
        ValueError: Not a table of finite pairs low < high.

    """
    if not isinstance(ranges, dict):
        raise ValueError("value_ranges must be a table")
    checked = {str(name): (float(low), float(high)) for name, (low, high) in ranges.items()}
    for name, (low, high) in checked.items():
        if not is_range(low, high):
            raise ValueError(f"value_ranges.{name}={low}, {high}: needs finite low < high")
    return checked
