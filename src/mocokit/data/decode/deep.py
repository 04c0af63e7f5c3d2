"""Samples of more than 8 bits (or signed, or floating point), and their mapping to 8 bits by a value range.

The mapping is the same for all images of a data set: `low` becomes 0, `high` becomes 255, linear between, rounded to
the nearest, clipped outside. Pixels without data (NaN, infinite, or the file's GDAL_NODATA) become 0.

Shapes: H x W image, C 1 or 3 channels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.decode.errors import DecodeError

ValueRanges = Mapping[str, tuple[float, float]]
"""Sample type, such as "uint16", -> (low, high). The key GIVEN holds a range that the user gave for all types."""

NO_RANGES: ValueRanges = {}

GIVEN = "given"

SAMPLE_TYPES = (
    *("int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64"),
)
"""Types whose values need a range. Unsigned samples of 9 to 16 bits are uint16, of 17 to 32 bits uint32."""

_BLOCK = 2**20
"""Samples that are converted at a time, so that no float64 copy of a large image is made."""


@dataclass(frozen=True, kw_only=True)
class DeepPixels:
    """Upright pixels with samples that need a value range."""

    samples: NDArray[Any]
    """(H, W, C) of one of SAMPLE_TYPES, native byte order."""
    alpha: NDArray[np.float32] | None = None
    """(H, W) opacity in 0..1; None: opaque."""
    inverted: bool = False
    """True if the lowest value is white (TIFF's WhiteIsZero)."""
    nodata: float | None = None
    """Value of pixels without data, beside NaN and infinite ones."""

    @property
    def sample_type(self) -> str:
        """Name of the samples' type."""
        return self.samples.dtype.name

    def has_data(self) -> NDArray[np.bool_]:
        """Return (H, W, C) True for samples that hold data."""
        return _has_data(self.samples, self.nodata)


def _has_data(samples: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = np.isfinite(samples)
    if nodata is not None and math.isfinite(nodata) and _fits(nodata, samples.dtype):
        with np.errstate(over="ignore"):  # a float beyond the type's values is infinite, and not valid anyway
            valid &= samples != samples.dtype.type(nodata)
    return valid


def _fits(value: float, dtype: np.dtype[Any]) -> bool:
    """Return True if a sample of this type can hold `value`; else no sample is without data because of it."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return value == math.floor(value) and limits.min <= value <= limits.max


def find_range(ranges: ValueRanges, sample_type: str) -> tuple[float, float]:
    """Return the range of a sample type.

    Raises:
        DecodeError: There is none.

    """
    found = ranges.get(GIVEN) or ranges.get(sample_type)
    if found is None:
        raise DecodeError(
            f"{sample_type} samples, but no value range for them was measured or given: no image of this type was "
            "among those it was measured on; give --data.value-range LOW HIGH"
        )
    return found


def to_8_bit(deep: DeepPixels, ranges: ValueRanges) -> Image.Image:
    """Return the RGB image; gray is repeated over the channels, transparent pixels are put on white.

    Raises:
        DecodeError: There is no range for this sample type.

    """
    low, high = find_range(ranges, deep.sample_type)
    mapped = map_samples(deep.samples, low, high)
    if deep.inverted:
        mapped = 255 - mapped
    if deep.nodata is not None or deep.samples.dtype.kind == "f":
        mapped[~deep.has_data()] = 0
    if mapped.shape[2] == 1:
        mapped = np.repeat(mapped, 3, axis=2)
    return Image.fromarray(mapped if deep.alpha is None else on_white(mapped, deep.alpha))


def map_samples(samples: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map low..high to 0..255, linear, rounded to nearest and clipped; NaN becomes 0."""
    if samples.dtype.itemsize <= 2 and samples.dtype.kind in "iu":  # few values: one table instead of float arithmetic
        limits = np.iinfo(samples.dtype)
        table = _mapped(np.arange(limits.min, limits.max + 1, dtype=np.int64), low, high)
        mapped: NDArray[np.uint8] = table[samples.astype(np.int64) - limits.min]
        return mapped
    flat = np.ascontiguousarray(samples).reshape(-1)
    target = np.empty(flat.shape, np.uint8)
    for start in range(0, len(flat), _BLOCK):
        target[start : start + _BLOCK] = _mapped(flat[start : start + _BLOCK], low, high)
    return target.reshape(samples.shape)


def _mapped(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    with np.errstate(invalid="ignore", over="ignore"):  # infinite samples, which become 0 as pixels without data
        scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
        return np.asarray(np.rint(np.nan_to_num(scaled, nan=0.0).clip(0.0, 255.0)), np.uint8)


def on_white(pixels: NDArray[np.uint8], alpha: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Put pixels (H, W, 3) of opacity `alpha` (H, W) on white paper."""
    opacity = alpha[..., None]
    return np.rint(pixels * opacity + 255.0 * (1.0 - opacity)).astype(np.uint8)
