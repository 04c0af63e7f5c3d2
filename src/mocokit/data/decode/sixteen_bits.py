"""Read 16-bit PNG and PNM files with all their bits. Pillow gives 16-bit gray whole, of 16-bit colors the high bytes.

A second pass over a color PNG with another of Pillow's pixel layouts gives the low bytes.
"""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from mocokit.data.decode.deep import DeepPixels
from mocokit.data.decode.errors import DecodeError
from mocokit.data.decode.orientation import ORIENTATION_TAG, turn_upright, valid_orientation

_PNG_BIT_DEPTH_AT = 24
"""Place of the bit depth in a PNG: 8 bytes of signature, 8 of chunk header, 8 of size."""

_LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""Pillow's layout of a 16-bit color PNG -> the layout that takes the second byte of each sample."""


def may_be_deep(raw: bytes) -> bool:
    """Return True if a PNG or PNM file can have samples of more than 8 bits."""
    if raw[:8] == b"\x89PNG\r\n\x1a\n":
        return raw[_PNG_BIT_DEPTH_AT : _PNG_BIT_DEPTH_AT + 1] == b"\x10"
    return raw[:1] == b"P" and raw[1:2] in {b"2", b"3", b"5", b"6", b"f", b"F"}


def read_deep(image: ImageFile.ImageFile, raw: bytes) -> DeepPixels | None:
    """Return the samples of an opened, not yet loaded image, upright; None if they have 8 bits."""
    samples: NDArray[Any]
    alpha: NDArray[np.float32] | None = None
    if image.format == "PNG" and raw[_PNG_BIT_DEPTH_AT] == 16:
        samples, alpha = _read_png(image, raw)
    elif image.format == "PPM" and _pnm_maximum(image) > 255:
        samples = _read_pnm(image, raw)
    elif image.mode == "F":
        samples = np.asarray(image)[..., None]
    else:
        return None
    orientation = valid_orientation(image.getexif().get(ORIENTATION_TAG))
    turned = None if alpha is None else turn_upright(alpha, orientation)
    return DeepPixels(samples=turn_upright(samples, orientation), alpha=turned)


def _read_png(image: ImageFile.ImageFile, raw: bytes) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return (samples (H, W, 1 or 3), opacity (H, W) or None)."""
    samples: NDArray[Any]
    key = image.info.get("transparency")  # one gray level or color that is transparent
    layout = image.tile[0][3]
    assert isinstance(layout, str), "PngImagePlugin has no other arguments"
    if layout in _LOW_BYTES:
        high = np.asarray(image).astype(np.uint16)
        samples = (high << 8) | _load_as(raw, _LOW_BYTES[layout])
    elif layout == "LA;16B":
        parts = _load_as(raw, "RGBA").astype(np.uint16)  # the four bytes of a pixel: gray high, low, alpha high, low
        samples = (parts[:, :, 0::2] << 8) | parts[:, :, 1::2]
    else:
        samples = np.asarray(image).astype(np.uint16)[..., None]
    if samples.shape[2] in {2, 4}:
        return samples[:, :, :-1], samples[:, :, -1].astype(np.float32) / np.float32(65535)
    if key is None:
        return samples, None
    visible = np.any(samples != np.asarray(key, np.uint16), axis=2)
    return samples, visible.astype(np.float32)


def _load_as(raw: bytes, layout: str) -> NDArray[np.uint8]:
    """Return the pixels of a PNG, decoded as if its bytes had another of Pillow's layouts."""
    image = Image.open(BytesIO(raw), formats=("PNG",))
    make = getattr(ImageFile, "_Tile", lambda *parts: parts)  # plain tuples before Pillow 11
    image.tile = [make(*tile[:3], layout) for tile in image.tile]
    return np.asarray(image)


def _pnm_maximum(image: ImageFile.ImageFile) -> int:
    """Return the largest value that a PGM or PPM file says it can hold; 0 for a bitmap and for floats."""
    args = image.tile[0][3]
    if args == "I;16B":
        return 65535
    return args[1] if isinstance(args, tuple) and isinstance(args[1], int) and image.mode != "F" else 0


def _read_pnm(image: ImageFile.ImageFile, raw: bytes) -> NDArray[Any]:
    """Return samples (H, W, 1 or 3), scaled from 0..the file's maximum to 0..65535, as Pillow scales gray ones."""
    maximum = _pnm_maximum(image)
    if image.mode != "RGB":
        return np.asarray(image).astype(np.uint16)[..., None]
    if raw[:2] != b"P6":
        raise DecodeError("a PPM file of text with more than 8 bits; convert it to PNG")
    count = image.width * image.height * 3
    stored = np.frombuffer(raw, ">u2", count=count, offset=image.tile[0][2])
    scaled: NDArray[Any] = np.rint(np.minimum(stored, maximum) * (65535 / maximum)).astype(np.uint16)
    return scaled.reshape(image.height, image.width, 3)
