"""Decode TIFF files. The tags decide how; a combination that no test has proven is a bad image whose reason names it.

Pillow (libtiff) reads the unsigned 8-bit kinds, and what has fewer bits; tifffile reads samples of more bits, signed
and floating-point ones, and three bands that are not marked as RGB, which GDAL and rasterio write by default. tifffile
needs imagecodecs for some compressions.

The first page of a file with several pages is the image. Bands that are not alpha are R, G and B in their order; one
band is gray. Other numbers of bands are refused.
"""

import logging
import zlib
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mocokit.data.decode.deep import SAMPLE_TYPES, DeepPixels, on_white
from mocokit.data.decode.errors import DecodeError
from mocokit.data.decode.orientation import turn_upright
from mocokit.data.decode.tiff_tags import TiffLayout, read_layout
from mocokit.data.sources.limits import MAX_IMAGE_BYTES, PILLOW_ERRORS

TIFF_ERRORS = (*PILLOW_ERRORS, ArithmeticError, NotImplementedError, AssertionError)
"""Exceptions of Pillow and tifffile on damaged files, found by fuzzing."""

WHITE_IS_ZERO = 0
BLACK_IS_ZERO = 1
RGB = 2
PALETTE = 3
CMYK = 5
YCBCR = 6

PHOTOMETRICS = {
    **{WHITE_IS_ZERO: "WhiteIsZero", BLACK_IS_ZERO: "BlackIsZero", RGB: "RGB", PALETTE: "palette", 4: "mask"},
    **{CMYK: "CMYK", YCBCR: "YCbCr", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "CFA (raw sensor)"},
    **{32844: "LogL", 32845: "LogLuv", 34892: "linear raw"},
}
"""PhotometricInterpretation -> its name."""

NONE = 1
LZW = 5
JPEG = 7
PACKBITS = 32773
ZSTD = 50000
DEFLATE = (8, 32946)
FAX = (2, 3, 4)

COMPRESSIONS = {
    **{NONE: "none", 2: "CCITT RLE", 3: "CCITT fax 3", 4: "CCITT fax 4", LZW: "LZW", 6: "old JPEG", JPEG: "JPEG"},
    **{8: "deflate", 32946: "deflate", PACKBITS: "PackBits", 34925: "LZMA", ZSTD: "Zstandard", 50001: "WebP"},
    **{33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 50002: "JPEG XL"},
}
"""Compression -> its name."""

PILLOW_COMPRESSIONS = (NONE, *DEFLATE, LZW, PACKBITS)
TIFFFILE_COMPRESSIONS = (NONE, *DEFLATE, LZW, PACKBITS, ZSTD)

_SEGMENT_SLACK_PX = 2**24
"""Pixels by which tiles at the edges may exceed the image together: a tile of 4096 x 4096."""

LOGGER = logging.getLogger("tifffile")
LOGGER.addHandler(logging.NullHandler())  # its remarks on damaged files stay off the terminal; the reason is ours


def decode_tiff(raw: bytes, *, max_image_px: int) -> Image.Image | DeepPixels:
    """Return the first page, upright: an image of Pillow, or samples that need a value range.

    Raises:
        DecodeError: The file is damaged, too large, or stored in a way that is not read.

    """
    layout = read_layout(raw)
    num_px = layout.width * layout.height
    if num_px > max_image_px:
        raise DecodeError(f"{layout.width}x{layout.height} pixels, more than data.max_image_px={max_image_px}")
    _require_bounded(layout, len(raw))
    try:
        if _is_for_pillow(layout):
            return _by_pillow(raw, layout)
        _require_readable(layout)
        return _by_tifffile(raw, layout)
    except DecodeError:
        raise
    except TIFF_ERRORS as error:
        raise DecodeError(f"damaged TIFF ({str(error) or type(error).__name__})") from error


def needs_range(layout: TiffLayout) -> bool:
    """Return True if the samples of this layout need a value range."""
    return layout.bits > 8 or layout.sample_format != 1


def describe(layout: TiffLayout) -> str:
    """Return the layout in words, such as "4 bands, 16-bit unsigned, RGB, LZW"."""
    kinds = {1: "unsigned", 2: "signed", 3: "float"}
    bands = "1 band" if layout.samples == 1 else f"{layout.samples} bands"
    parts = [
        bands,
        f"{layout.bits}-bit {kinds.get(layout.sample_format, f'sample format {layout.sample_format}')}",
        PHOTOMETRICS.get(layout.photometric, f"photometric {layout.photometric}"),
        f"compression {COMPRESSIONS.get(layout.compression, layout.compression)}",
    ]
    parts += [f"extra samples {layout.extra}"] * bool(layout.extra)
    parts += [f"predictor {layout.predictor}"] * (layout.predictor != 1)
    parts += ["fill order 2"] * (layout.fill_order != 1)
    return ", ".join(parts)


def _require_bounded(layout: TiffLayout, num_bytes: int) -> None:
    """Raise DecodeError if strips or tiles hold more than the image, or overlap: they could take any time or memory."""
    padded = layout.segment_px * layout.num_segments
    planes = layout.samples if layout.planar == 2 else 1
    if padded > 4 * planes * layout.width * layout.height + _SEGMENT_SLACK_PX:
        raise DecodeError(f"damaged TIFF: {layout.num_segments} tiles of {layout.segment_px} pixels, more than needed")
    if len(layout.segment_offsets) != layout.num_segments:
        raise DecodeError(f"damaged TIFF: {len(layout.segment_offsets)} strips or tiles, {layout.num_segments} needed")
    if layout.segment_bytes and len(layout.segment_bytes) != layout.num_segments:
        raise DecodeError(f"damaged TIFF: sizes of {len(layout.segment_bytes)} strips, {layout.num_segments} needed")
    if sum(layout.segment_bytes) > num_bytes:
        raise DecodeError("damaged TIFF: its strips or tiles overlap")
    ends = zip(layout.segment_offsets, layout.segment_bytes, strict=bool(layout.segment_bytes))
    if any(offset + size > num_bytes for offset, size in ends):
        raise DecodeError("truncated TIFF: strips or tiles lie behind its end")
    if any(size == 0 for size in layout.segment_bytes):
        raise DecodeError("a TIFF with empty strips or tiles (sparse); write it without sparse blocks")


def _is_for_pillow(layout: TiffLayout) -> bool:
    """Return True for unsigned samples of at most 8 bits that Pillow is proven to read."""
    if layout.sample_format != 1 or layout.bits > 8 or layout.is_big_endian_bigtiff:
        return False
    compressions: tuple[int, ...] = PILLOW_COMPRESSIONS
    bits: tuple[int, ...] = (8,)
    samples = 1
    match layout.photometric:
        case 0 | 1:
            bits = (1, 2, 4, 8)
            compressions = (*compressions, *(FAX if layout.bits == 1 else ()), *((JPEG,) if layout.bits == 8 else ()))
        case 2:
            samples = 3
            compressions = (*compressions, JPEG)
        case 3:
            bits = (1, 2, 4, 8)
        case 5:
            samples = 4
        case 6:
            samples = 3
            compressions = (JPEG,)
        case _:
            return False
    alphas = {RGB: {(1,), (2,)}, BLACK_IS_ZERO: {(2,)}}.get(layout.photometric, set())  # not gray multiplied with alpha
    has_alpha = layout.extra in alphas and layout.bits == 8
    return (
        layout.bits in bits
        and layout.samples == samples + has_alpha
        and len(layout.extra) == has_alpha
        and (layout.compression != JPEG or not has_alpha)
        and layout.compression in compressions
        and layout.ink_set == 1
        and layout.fill_order in ((1, 2) if layout.bits == 1 else (1,))
        and layout.predictor in ((1, 2) if layout.bits == 8 and layout.compression in (LZW, *DEFLATE) else (1,))
    )


def _require_readable(layout: TiffLayout) -> None:
    """Raise DecodeError unless tifffile is proven to read this layout."""
    bands = layout.samples - layout.num_alpha
    if layout.photometric not in {WHITE_IS_ZERO, BLACK_IS_ZERO, RGB}:
        raise DecodeError(f"a TIFF of a kind that is not read ({describe(layout)}); convert it to RGB or gray")
    if bands not in {1, 3} or (layout.photometric != BLACK_IS_ZERO and bands != _bands_of(layout.photometric)):
        raise DecodeError(_band_reason(layout))
    deflated = layout.compression in (LZW, *DEFLATE, ZSTD)
    predictors = (1, 3) if layout.sample_format == 3 else (1, 2)
    packed = layout.bits not in {8, 16, 32, 64}
    type_is_read = {
        1: not packed or 8 < layout.bits < 32,
        2: not packed,
        3: layout.bits in {16, 32, 64},
    }.get(layout.sample_format, False)
    if (
        not type_is_read
        or layout.compression not in TIFFFILE_COMPRESSIONS
        or layout.fill_order != 1
        or layout.predictor not in (predictors if deflated else (1,))
        or (packed and layout.predictor != 1)
        or not layout.segment_bytes
    ):
        raise DecodeError(f"a TIFF of a kind that is not read ({describe(layout)}); convert it")
    needs_codecs = layout.compression in {LZW, PACKBITS, ZSTD} or layout.predictor == 3 or packed
    if needs_codecs and find_spec("imagecodecs") is None:
        raise DecodeError(f"a TIFF that needs imagecodecs ({describe(layout)}): pip install 'mocokit[tiff]'")


def _bands_of(photometric: int) -> int:
    return 3 if photometric == RGB else 1


def _band_reason(layout: TiffLayout) -> str:
    unspecified = [value for value in layout.extra if value not in {1, 2}]
    bands = layout.samples - layout.num_alpha
    reason = f"a TIFF of {bands} bands" + (" and alpha" if layout.num_alpha else "")
    if layout.photometric == RGB and bands == 4 and unspecified:
        reason += ", the 4th of unspecified meaning (not marked as alpha)"
    return f"{reason}; only 1 band (gray) or 3 bands (R, G, B) are read: write the ones you want into a file of 3 bands"


def _by_pillow(raw: bytes, layout: TiffLayout) -> Image.Image:
    image = Image.open(BytesIO(raw), formats=("TIFF",))
    if image.width * image.height != layout.width * layout.height:
        raise DecodeError(f"damaged TIFF: {image.width}x{image.height} pixels or {layout.width}x{layout.height}")
    image.load()
    return ImageOps.exif_transpose(image)


def _by_tifffile(raw: bytes, layout: TiffLayout) -> Image.Image | DeepPixels:
    samples = _read_samples(raw, layout)
    if layout.planar == 2:
        samples = samples.transpose(1, 2, 0)
    samples = turn_upright(samples.reshape(*samples.shape[:2], -1), layout.orientation)
    bands = layout.samples - layout.num_alpha
    colors = _unmultiplied(np.ascontiguousarray(samples[:, :, :bands]), samples, layout)
    if not needs_range(layout):
        return _eight_bits(colors, _opacity(samples, layout), layout)
    if colors.dtype.name not in SAMPLE_TYPES:
        raise DecodeError(f"samples of type {colors.dtype.name} ({describe(layout)})")
    return DeepPixels(
        samples=colors,
        alpha=_opacity(samples, layout),
        inverted=layout.photometric == WHITE_IS_ZERO,
        nodata=layout.nodata,
    )


def _read_samples(raw: bytes, layout: TiffLayout) -> NDArray[Any]:
    """Return the samples as tifffile reads them: (H, W), (H, W, S), or with planes (S, H, W)."""
    import tifffile

    if layout.compression in DEFLATE and find_spec("imagecodecs") is None:
        _require_inflated_size(raw, layout)  # tifffile's own inflate has no bound, imagecodecs' has
    plain: dict[str, Any] = {
        f"is_{name}": False for name in tifffile.TIFF.FILE_FLAGS
    }  # no vendor's special cases, no further pages
    with tifffile.TiffFile(BytesIO(raw), **plain) as file:
        page = file.pages.first
        planes = layout.samples if layout.planar == 2 else 1
        expected = (planes, 1, layout.height, layout.width, layout.samples // planes)
        if tuple(page.shaped) != expected or page.dtype is None or page.is_subsampled:
            raise DecodeError(f"damaged TIFF: its shape is {page.shaped}, not {expected}")
        _require_bytes(page.dtype.itemsize, layout)
        samples: NDArray[Any] = page.asarray(squeeze=False, maxworkers=1)
    return samples[:, 0, :, :, 0] if planes > 1 else samples[0, 0]


def _require_bytes(itemsize: int, layout: TiffLayout) -> None:
    size = layout.width * layout.height * layout.samples * itemsize
    if size > MAX_IMAGE_BYTES:
        raise DecodeError(f"{size} bytes of samples, more than {MAX_IMAGE_BYTES}")


def _require_inflated_size(raw: bytes, layout: TiffLayout) -> None:
    """Raise DecodeError if a strip or tile unpacks to more bytes than its pixels have."""
    samples = 1 if layout.planar == 2 else layout.samples
    limit = layout.segment_px * samples * (layout.bits // 8)
    for offset, size in zip(layout.segment_offsets, layout.segment_bytes, strict=True):
        unpacker = zlib.decompressobj()
        if len(unpacker.decompress(raw[offset : offset + size], limit + 1)) > limit:
            raise DecodeError("damaged TIFF: a strip unpacks to more bytes than its pixels have")


def _opacity(samples: NDArray[Any], layout: TiffLayout) -> NDArray[np.float32] | None:
    """Return (H, W) opacity in 0..1, None without alpha."""
    if layout.num_alpha == 0:
        return None
    if layout.sample_format == 2:
        raise DecodeError(f"a TIFF with signed alpha ({describe(layout)}); leave alpha out")
    top = 1.0 if layout.sample_format == 3 else float(2**layout.bits - 1)
    with np.errstate(invalid="ignore", over="ignore"):
        opacity: NDArray[np.float32] = np.nan_to_num(samples[:, :, -1].astype(np.float32) / np.float32(top), nan=0.0)
    return np.clip(opacity, np.float32(0.0), np.float32(1.0))


def _unmultiplied(colors: NDArray[Any], samples: NDArray[Any], layout: TiffLayout) -> NDArray[Any]:
    """Return the colors before they were multiplied with alpha (ExtraSamples 1); others as they are."""
    if layout.num_alpha == 0 or layout.extra[-1] != 1:
        return colors
    opacity = _opacity(samples, layout)
    assert opacity is not None, "num_alpha is 1"
    whole: NDArray[Any] = np.divide(
        colors, opacity[..., None], out=np.zeros(colors.shape), where=opacity[..., None] > 0
    )
    if colors.dtype.kind == "f":
        return np.asarray(whole, colors.dtype)
    limits = np.iinfo(colors.dtype)
    return np.asarray(np.rint(whole).clip(limits.min, limits.max), colors.dtype)


def _eight_bits(colors: NDArray[np.uint8], alpha: NDArray[np.float32] | None, layout: TiffLayout) -> Image.Image:
    """Return unsigned 8-bit colors (H, W, 1 or 3) as an RGB image, transparency on white."""
    rgb = np.repeat(colors, 3, axis=2) if colors.shape[2] == 1 else colors
    rgb = 255 - rgb if layout.photometric == WHITE_IS_ZERO else rgb
    return Image.fromarray(np.ascontiguousarray(rgb if alpha is None else on_white(rgb, alpha)))
