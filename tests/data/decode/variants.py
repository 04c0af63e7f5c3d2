"""What a variant is, the pixels that are written, and the oracle: what they must look like when they are read."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

HEIGHT = 19
WIDTH = 37
LOW = -20.0
HIGH = 181.0
"""The value range of the test, which clips some of the values at both ends."""

ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
DEEP_TYPES = ("int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")
TYPES = ("uint8", *DEEP_TYPES)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One file, and what must come of it."""

    name: str
    raw: bytes
    expected: Array | None = None
    """(H, W, 3) uint8; None: refused."""
    reason: str = ""
    """Pattern of the refusal's reason."""
    tolerance: float = 0.0
    """Allowed mean difference, for lossy files."""


def pixels_of(dtype: str, samples: int, *, seed: int = 0) -> Array:
    """Return random pixels (H, W, S) of the type; deep values from about -60 to 260, floats with fractions."""
    rng = np.random.default_rng(seed)
    if dtype == "uint8":
        return rng.integers(0, 256, (HEIGHT, WIDTH, samples), np.uint8)
    lowest = {"u": 0, "i": -60, "f": -60}[np.dtype(dtype).kind]
    highest = 127 if dtype == "int8" else 260
    values = rng.uniform(lowest, highest, (HEIGHT, WIDTH, samples))
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else np.rint(values).astype(dtype)


def mapped(pixels: Array) -> Array:
    """Return the pixels in 8 bits, by the formula: uint8 stay, others go linearly from LOW..HIGH to 0..255."""
    if pixels.dtype == np.uint8:
        return pixels
    part = (pixels.astype(np.float64) - LOW) / (HIGH - LOW)
    return np.asarray(np.round(255 * np.minimum(1, np.maximum(0, part))), np.uint8)


def as_rgb(pixels: Array) -> Array:
    """Return gray (H, W, 1) as RGB."""
    return pixels if pixels.shape[2] == 3 else np.concatenate([pixels] * 3, axis=2)


def on_white(colors: Array, alpha: Array) -> Array:
    """Return colors (H, W, C) of opacity `alpha` (H, W) in 0..1 on white."""
    return np.asarray(np.round(colors * alpha[..., None] + 255 * (1 - alpha[..., None])), np.uint8)


def upright(pixels: Array, orientation: int) -> Array:
    """Return the picture that a stored one of this orientation shows, by the definition of the EXIF standard."""
    rows_first = np.swapaxes(pixels, 0, 1) if orientation > 4 else pixels
    flips = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
    down, right = flips[orientation]
    return rows_first[::down, ::right]


def smooth() -> Array:
    """Return a smooth picture (48, 64, 3) that JPEG changes little."""
    small = np.random.default_rng(3).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC))
