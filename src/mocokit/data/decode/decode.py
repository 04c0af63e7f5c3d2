"""Decode any supported image file to upright RGB pixels with 8 bits per channel."""

import warnings
from io import BytesIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, ImageFileDirectory_v2

from mocokit.data.decode.jpeg import has_absurd_scans
from mocokit.data.sources.limits import PILLOW_ERRORS
from mocokit.data.sources.sources import RawImage
from mocokit.data.sources.suffixes import reads_avif

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", *(("AVIF",) if reads_avif() else ()))
"""Formats that are read, whatever the file's suffix (Pillow opens MPO as JPEG). Other formats of Pillow are left out;
one of them, EPS, is a program that Ghostscript would run."""


class DecodeError(ValueError):
    """The file is not an image that can be used; the message says why."""


def decode(raw: RawImage, *, max_image_px: int) -> Image.Image:
    """Decode an image to RGB, apply the EXIF orientation, and put transparent images on white.

    Grayscale is repeated over the channels, palettes and CMYK are converted, and 16-bit samples keep their high byte.

    Args:
        raw: An encoded file, or uint8 pixels (H, W) or (H, W, 3).
        max_image_px: Largest number of pixels; larger images (decompression bombs) are refused before decoding.

    Raises:
        DecodeError: The file is damaged, empty, truncated, too large or of an unknown format.

    """
    if isinstance(raw, np.ndarray):
        _refuse_large(raw.shape[1], raw.shape[0], max_image_px)
        return Image.fromarray(raw).convert("RGB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd EXIF and large sizes; an image that can't be used is an error below
        return _decode_file(raw, max_image_px)


def _decode_file(raw: bytes, max_image_px: int) -> Image.Image:
    try:
        image = Image.open(BytesIO(raw), formats=FORMATS)
    except PILLOW_ERRORS as error:
        if raw[:4] in {b"II*\0", b"MM\0*"}:  # a TIFF that Pillow has no mode for, such as 16-bit RGB
            return _decode_tiff(raw, max_image_px)
        raise DecodeError(_reason(raw, error)) from error
    _refuse_large(image.width, image.height, max_image_px)
    if image.format in {"JPEG", "MPO"} and has_absurd_scans(raw, image.width * image.height):
        raise DecodeError("a JPEG with absurdly many scans")
    try:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
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
    """Return the image in RGB: transparency over white, and the high byte of samples of more than 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_high_byte(np.asarray(image))).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")


def _high_byte(samples: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Convert samples to 8 bits: integers lose their low byte, floats are scaled from 0..max(1, largest sample)."""
    if samples.dtype.kind in "iu":
        high: NDArray[np.uint8] = (np.clip(samples, 0, 65535).astype(np.uint32) >> 8).astype(np.uint8)
        return high
    finite = np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0.0)
    top = max(1.0, float(finite.max(initial=0.0)))
    return np.rint(finite / top * 255).astype(np.uint8)


def _decode_tiff(raw: bytes, max_image_px: int) -> Image.Image:
    _refuse_large(*_tiff_size(raw), max_image_px)
    try:
        samples = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DecodeError(f"damaged TIFF ({error.err})") from error
    if samples is None:
        raise DecodeError("not a TIFF that Pillow or OpenCV reads")
    pixels = samples if samples.dtype == np.uint8 else _high_byte(samples)
    if pixels.ndim == 3:
        if pixels.shape[2] not in (3, 4):
            raise DecodeError(f"TIFF with {pixels.shape[2]} channels")
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]  # OpenCV's order is B, G, R, A
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def _tiff_size(raw: bytes) -> tuple[int, int]:
    """Return (width, height) from the TIFF's first directory, without decoding."""
    file = BytesIO(raw)
    try:
        directory = ImageFileDirectory_v2(raw[:8])
        file.seek(directory.next)
        directory.load(file)
        return int(directory[IMAGEWIDTH]), int(directory[IMAGELENGTH])
    except PILLOW_ERRORS as error:
        raise DecodeError(f"damaged TIFF ({error})") from error
