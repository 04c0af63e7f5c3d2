"""TIFF files of every kind, each with the picture that must come of it, or the reason of its refusal."""

import io
import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from tests.data.decode.variants import (
    HEIGHT,
    ORDERS,
    TYPES,
    WIDTH,
    Variant,
    as_rgb,
    mapped,
    on_white,
    pixels_of,
    smooth,
)
from tests.data.decode.written_files import tiff


def plain_tiffs() -> Iterator[Variant]:
    """Types x samples x planes x byte order x strips or tiles x compression; three bands as BlackIsZero and RGB."""
    shapes = (
        ("gray", 1, 1, 1),
        ("BlackIsZero", 3, 1, 1),
        ("planes", 3, 2, 1),
        ("RGB", 3, 2, 2),
        ("RGB chunky", 3, 1, 2),
    )
    blocks = ((None, None), (4, None), (None, 16))
    for dtype, (word, samples, planar, photometric), order, (rows, tile), compression in itertools.product(
        TYPES, shapes, ORDERS, blocks, (1, 8)
    ):
        pixels = pixels_of(dtype, samples)
        extra = [0, 0] if word == "BlackIsZero" else []
        raw = tiff(
            pixels,
            photometric=photometric,
            order=order,
            planar=planar,
            compression=compression,
            extra=extra,
            big=rows is not None,
            rows=rows,
            tile=tile,
        )
        name = f"tiff {dtype} {word} {order} rows {rows} tile {tile} compression {compression}"
        yield Variant(name=name, raw=raw, expected=as_rgb(mapped(pixels)))


def packed_tiffs() -> Iterator[Variant]:
    """Gray and palette images of 1 to 14 bits in whole and packed bytes, both photometrics, both byte orders."""
    rng = np.random.default_rng(1)
    for bits, order, compression in itertools.product((1, 2, 4, 8), ORDERS, (1, 8, 32773)):
        levels = rng.integers(0, 2**bits, (HEIGHT, WIDTH, 1), np.uint8)
        gray = levels * np.uint8(255 // (2**bits - 1))
        options: dict[str, Any] = {"bits": bits, "order": order, "compression": compression, "sample_format": 1}
        for photometric, expected in ((1, gray), (0, 255 - gray)):
            raw = tiff(levels, photometric=photometric, **options)
            yield Variant(name=f"tiff photometric {photometric} {options}", raw=raw, expected=as_rgb(expected))
        colors = rng.integers(0, 256, (3, 2**bits), np.uint16)
        raw = tiff(levels, photometric=3, tags=[(320, 3, (colors * 257).reshape(-1).tolist())], **options)
        yield Variant(name=f"tiff palette {options}", raw=raw, expected=colors.T[levels[..., 0]].astype(np.uint8))
    for photometric, order in itertools.product((0, 1), ORDERS):  # the lowest bit first, as fax machines write
        bilevel = rng.integers(0, 2, (HEIGHT, WIDTH, 1), np.uint8)
        rows = np.packbits(bilevel[..., 0], axis=1, bitorder="little").tobytes()
        tags = [(266, 3, [2])]
        raw = tiff(bilevel, photometric=photometric, bits=1, order=order, tags=tags, blob=rows)
        shown = 255 * (bilevel if photometric else 1 - bilevel)
        yield Variant(name=f"tiff fill order 2 {photometric} {order}", raw=raw, expected=as_rgb(shown))
    for bits, samples, order in itertools.product((10, 12, 14), (1, 3), ORDERS):
        deep = rng.integers(0, min(2**bits, 260), (HEIGHT, WIDTH, samples), np.uint16)
        raw = tiff(deep, photometric=1 if samples == 1 else 2, bits=bits, order=order, rows=5)
        yield Variant(name=f"tiff packed {bits} bits x {samples} {order}", raw=raw, expected=as_rgb(mapped(deep)))


def alpha_tiffs() -> Iterator[Variant]:
    """Extra samples: alpha is put on white, an unspecified band is no alpha; other numbers of bands are refused."""
    for dtype, photometric, order in itertools.product(("uint8", "uint16", "float32"), (1, 2), ORDERS):
        bands = 3 if photometric == 2 else 1
        pixels = pixels_of(dtype, bands + 1)
        top = {"u": float(np.iinfo(dtype).max) if dtype[0] == "u" else 1.0}.get(dtype[0], 1.0)
        alpha = np.random.default_rng(5).integers(0, 2, (HEIGHT, WIDTH))  # opaque or not: no rounding of products
        pixels[:, :, -1] = (alpha * top).astype(dtype)
        expected = on_white(as_rgb(mapped(pixels[:, :, :bands])), alpha)
        for extra in (1, 2):
            stored = pixels.copy()
            if extra == 1:
                stored[alpha == 0, :bands] = 0  # as colors multiplied with alpha are
            raw = tiff(stored, photometric=photometric, extra=[extra], order=order)
            yield Variant(name=f"tiff {dtype} {bands} bands, extra {extra} {order}", raw=raw, expected=expected)
        for unspecified in ([0], []):
            raw = tiff(pixels, photometric=photometric, extra=unspecified, order=order)
            reason = "4 bands, the 4th of unspecified meaning" if bands == 3 and unspecified else f"{bands + 1} bands"
            yield Variant(name=f"tiff {dtype} {bands} bands + {unspecified} {order}", raw=raw, reason=reason)
    for dtype, count in itertools.product(("uint8", "uint16"), (2, 4, 5, 13)):
        raw = tiff(pixels_of(dtype, count), photometric=1, extra=[0] * (count - 1))
        yield Variant(name=f"tiff {count} bands {dtype}", raw=raw, reason=f"a TIFF of {count} bands")
    for dtype in ("uint8", "uint16"):
        pixels = pixels_of(dtype, 4)
        pixels[:, :, 3] = np.iinfo(dtype).max
        raw = tiff(pixels, photometric=1, extra=[0, 0, 2])
        yield Variant(name=f"tiff {dtype} BlackIsZero of 3 and alpha", raw=raw, expected=mapped(pixels[:, :, :3]))


def other_tiffs() -> Iterator[Variant]:
    """WhiteIsZero of deep samples, no-data values, predictors, and kinds that are refused by name."""
    for dtype in ("uint16", "int16", "float32"):
        pixels = pixels_of(dtype, 1)
        yield Variant(
            name=f"tiff WhiteIsZero {dtype}", raw=tiff(pixels, photometric=0), expected=255 - as_rgb(mapped(pixels))
        )
    for dtype, nodata in (("uint16", b"77\0"), ("int16", b"-5\0"), ("float32", b"nan\0")):
        pixels = pixels_of(dtype, 1)
        pixels[3:6, 4:9] = float(nodata[:-1])
        expected = as_rgb(mapped(np.nan_to_num(pixels)))
        expected[(pixels == float(nodata[:-1]))[..., 0]] = 0
        expected[3:6, 4:9] = 0
        yield Variant(
            name=f"tiff nodata {dtype}", raw=tiff(pixels, photometric=1, tags=[(42113, 2, nodata)]), expected=expected
        )
    for dtype, samples, order, planar in itertools.product(
        ("uint8", "uint16", "int16", "uint32"), (1, 3), ORDERS, (1, 2)
    ):
        pixels = pixels_of(dtype, samples)
        raw = tiff(pixels, photometric=samples // 2 + 1, predictor=2, compression=8, order=order, planar=planar, rows=7)
        yield Variant(
            name=f"tiff predictor 2 {dtype} x {samples} {order} {planar}", raw=raw, expected=as_rgb(mapped(pixels))
        )


def refused_tiffs() -> Iterator[Variant]:
    """Kinds that are not read; the reason names the kind."""
    rgb = pixels_of("uint8", 3)
    for photometric, word in (
        (6, "YCbCr"),
        (8, "CIELAB"),
        (9, "ICCLAB"),
        (32844, "LogL"),
        (34892, "linear raw"),
        (77, "photometric 77"),
    ):
        for dtype in ("uint8", "uint16"):
            raw = tiff(pixels_of(dtype, 3), photometric=photometric)
            yield Variant(name=f"tiff {word} {dtype}", raw=raw, reason=word)
    for photometric, word in ((3, "palette"), (4, "mask"), (32803, "CFA")):
        raw = tiff(pixels_of("uint16", 1), photometric=photometric)
        yield Variant(name=f"tiff {word} uint16", raw=raw, reason=re.escape(word))
    yield Variant(name="tiff CMYK uint16", raw=tiff(pixels_of("uint16", 4), photometric=5), reason="CMYK")
    for compression, word in (
        (6, "old JPEG"),
        (33003, "JPEG 2000"),
        (34712, "JPEG 2000"),
        (34887, "LERC"),
        (50002, "JPEG XL"),
        (99, "99"),
    ):
        for dtype in ("uint8", "uint16"):
            raw = tiff(pixels_of(dtype, 3), photometric=2, compression=compression, blob=b"\xff\x4f" * 40)
            yield Variant(name=f"tiff {word} {dtype}", raw=raw, reason=word)
    for sample_format in (4, 5, 6):
        raw = tiff(rgb, photometric=2, sample_format=sample_format)
        yield Variant(name=f"tiff sample format {sample_format}", raw=raw, reason=f"sample format {sample_format}")
    raw = tiff(rgb, photometric=2, tags=[(266, 3, [2])])
    yield Variant(name="tiff fill order", raw=raw, reason="fill order 2")
    for kind in (1, 4):
        raw = tiff(rgb, photometric=2, tags=[(254, 4, [kind])])
        yield Variant(name=f"tiff subfile type {kind}", raw=raw, reason="first page is a thumbnail or a mask")
    yield Variant(name="tiff LSM", raw=tiff(rgb, photometric=2, tags=[(34412, 3, [1])]), reason="Zeiss LSM")
    yield Variant(name="tiff volume", raw=tiff(rgb, photometric=2, tags=[(32997, 4, [2])]), reason="volume")


def library_tiffs() -> Iterator[Variant]:
    """Files of tifffile, with all compressions it shares with us, and of Pillow; the first page of several."""
    codecs = ("lzw", "deflate", "packbits", "zstd")
    for dtype, samples, codec, predictor, tile in itertools.product(
        TYPES, (1, 3), codecs, (False, True), (None, (16, 16))
    ):
        if predictor and codec == "packbits":
            continue
        pixels = pixels_of(dtype, samples)
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            pixels if samples == 3 else pixels[..., 0],
            photometric="rgb" if samples == 3 else "minisblack",
            compression=codec,
            predictor=predictor,
            tile=tile,
        )
        name = f"tifffile {dtype} x {samples} {codec} predictor {predictor} tile {tile}"
        yield Variant(name=name, raw=file.getvalue(), expected=as_rgb(mapped(pixels)))
    pages = [pixels_of("uint16", 1, seed=seed)[..., 0] for seed in (1, 2)]
    file = io.BytesIO()
    tifffile.imwrite(file, np.stack(pages), photometric="minisblack")
    yield Variant(name="tifffile two pages", raw=file.getvalue(), expected=as_rgb(mapped(pages[0][..., None])))
    picture = smooth()
    color_codecs = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    fax_codecs = ("raw", "tiff_lzw", "group3", "group4", "tiff_ccitt")
    kinds = [*itertools.product(("L", "P", "RGB", "CMYK"), color_codecs), *itertools.product("1", fax_codecs)]
    for mode, codec in kinds:
        if (codec, mode) == ("jpeg", "P"):
            continue
        image = Image.fromarray(picture).convert(mode)
        file = io.BytesIO()
        image.save(file, "TIFF", compression=None if codec == "raw" else codec)
        refused = (codec, mode) == ("jpeg", "CMYK")
        yield Variant(
            name=f"Pillow tiff {mode} {codec}",
            raw=file.getvalue(),
            expected=None if refused else np.asarray(image.convert("RGB")),
            reason="CMYK" if refused else "",
            tolerance=4.0 if codec == "jpeg" else 0.0,
        )
    for shape, kind in ((picture, "rgb"), (picture[..., 0], "minisblack")):
        file = io.BytesIO()
        tifffile.imwrite(
            file, shape, photometric=kind, compression="jpeg", compressionargs={"level": 95}, tile=(32, 32)
        )
        expected = as_rgb(shape.reshape(48, 64, -1))
        yield Variant(name=f"tifffile {kind} JPEG", raw=file.getvalue(), expected=expected, tolerance=4.0)
    for subsampling in ((1, 1), (2, 1), (2, 2)):
        file = io.BytesIO()
        stored = np.asarray(Image.fromarray(picture).convert("YCbCr"))
        options: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 95}}
        tifffile.imwrite(file, stored, photometric="ycbcr", subsampling=subsampling, **options)
        yield Variant(name=f"tifffile YCbCr JPEG {subsampling}", raw=file.getvalue(), expected=picture, tolerance=4.0)
