"""Decode any supported image file to upright RGB pixels with 8 bits per channel."""

import warnings
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mocokit.data.decode.deep import NO_RANGES, DeepPixels, ValueRanges, to_8_bit
from mocokit.data.decode.errors import DecodeError
from mocokit.data.decode.jpeg import has_absurd_scans
from mocokit.data.decode.sixteen_bits import may_be_deep, read_deep
from mocokit.data.decode.tiff import decode_tiff, needs_range
from mocokit.data.decode.tiff_tags import is_tiff, read_layout
from mocokit.data.sources.limits import PILLOW_ERRORS
from mocokit.data.sources.sources import RawImage
from mocokit.data.sources.suffixes import reads_avif

__all__ = ["FORMATS", "DecodeError", "decode", "decode_samples", "is_deep", "looks_deep", "to_rgb"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", *(("AVIF",) if reads_avif() else ()))
"""Formats that Pillow reads, beside TIFF, whatever the file's suffix (it opens MPO as JPEG). Other formats of Pillow
are left out; one of them, EPS, is a program that Ghostscript would run."""


def decode(raw: RawImage, *, max_image_px: int, ranges: ValueRanges = NO_RANGES) -> Image.Image:
    """Decode an image to RGB, apply the EXIF orientation, and put transparent images on white.

    Grayscale is repeated over the channels, palettes and CMYK are converted, and samples of more than 8 bits are mapped
    by their value range. Of several pages or frames, the first is the image.

    Args:
        raw: An encoded file, or uint8 pixels (H, W) or (H, W, 3).
        max_image_px: Largest number of pixels; larger images (decompression bombs) are refused before decoding.
        ranges: Value range of each sample type; a type of more than 8 bits without a range is refused.

    Raises:
        DecodeError: The file is damaged, empty, truncated, too large or of an unknown format.

    """
    pixels = decode_samples(raw, max_image_px=max_image_px)
    return to_8_bit(pixels, ranges) if isinstance(pixels, DeepPixels) else pixels


def decode_samples(raw: RawImage, *, max_image_px: int) -> Image.Image | DeepPixels:
    """Decode an image as `decode` does, but leave samples of more than 8 bits as they are; others become RGB.

    Raises:
        DecodeError: As `decode` does.

    """
    if isinstance(raw, np.ndarray):
        _refuse_large(raw.shape[1], raw.shape[0], max_image_px)
        return Image.fromarray(raw).convert("RGB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd EXIF and large sizes; an image that can't be used is an error below
        return _decode_file(raw, max_image_px)


def looks_deep(raw: RawImage) -> bool:
    """Return True if the samples probably need a value range, by the header alone."""
    if isinstance(raw, np.ndarray):
        return False
    if not is_tiff(raw):
        return may_be_deep(raw)
    try:
        return needs_range(read_layout(raw))
    except DecodeError:
        return False


def _decode_file(raw: bytes, max_image_px: int) -> Image.Image | DeepPixels:
    if is_tiff(raw):
        pixels = decode_tiff(raw, max_image_px=max_image_px)
        return pixels if isinstance(pixels, DeepPixels) else to_rgb(pixels)
    try:
        image = Image.open(BytesIO(raw), formats=FORMATS)
    except PILLOW_ERRORS as error:
        raise DecodeError(_reason(raw, error)) from error
    _refuse_large(image.width, image.height, max_image_px)
    if image.format in {"JPEG", "MPO"} and has_absurd_scans(raw, image.width * image.height):
        raise DecodeError("a JPEG with absurdly many scans")
    try:
        deep = read_deep(image, raw)
        if deep is not None:
            return deep
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except DecodeError:
        raise
    except PILLOW_ERRORS as error:
        raise DecodeError(_reason(raw, error)) from error


def _refuse_large(width: int, height: int, max_image_px: int) -> None:
    if width * height > max_image_px:
        raise DecodeError(f"{width}x{height} pixels, more than data.max_image_px={max_image_px}")


def _reason(raw: bytes, error: BaseException) -> str:
    if not raw:
        return "empty file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    return str(error) or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image with 8 bits per sample in RGB, transparency over white.

    Raises:
        DecodeError: Its samples have more than 8 bits.

    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if is_deep(image):
        raise DecodeError(f"mode {image.mode}, whose samples have more than 8 bits")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Return True if the samples of an image of Pillow have more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"
