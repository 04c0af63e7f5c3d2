"""PNG, PNM and JPEG files of every kind, and all orientations, each with the picture that must come of it."""

import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.data.decode.variants import HEIGHT, WIDTH, Variant, as_rgb, mapped, on_white, pixels_of, smooth, upright
from tests.data.decode.written_files import orientation_exif, png, tiff


def turned_files() -> Iterator[Variant]:
    """All 8 orientations in TIFF (8-bit, deep, planes, BigTIFF, by XMP), PNG (before and after the data) and JPEG."""
    for orientation in range(1, 9):
        for dtype, samples, planar in (
            ("uint8", 3, 1),
            ("uint8", 1, 1),
            ("uint16", 3, 1),
            ("float32", 1, 1),
            ("int16", 3, 2),
        ):
            for big in (False, True):
                pixels = pixels_of(dtype, samples)
                raw = tiff(pixels, photometric=1, planar=planar, orientation=orientation, big=big, compression=8)
                if dtype == "uint8" and samples == 3:
                    raw = tiff(pixels, photometric=2, planar=planar, orientation=orientation, big=big)
                yield Variant(
                    name=f"tiff {dtype} x {samples} orientation {orientation} big {big}",
                    raw=raw,
                    expected=upright(as_rgb(mapped(pixels)), orientation),
                )
        xmp = f'<x:xmpmeta tiff:Orientation="{orientation}"/>'.encode()
        for dtype in ("uint8", "uint16"):
            pixels = pixels_of(dtype, 3)
            raw = tiff(pixels, photometric=2, tags=[(700, 1, xmp)])
            expected = upright(mapped(pixels), orientation)
            yield Variant(name=f"tiff {dtype} xmp orientation {orientation}", raw=raw, expected=expected)
        for bits, late in itertools.product((8, 16), (False, True)):
            pixels = pixels_of(f"uint{bits}", 3)
            chunks = [(b"eXIf", orientation_exif(orientation))]
            raw = png(pixels, bits=bits, chunks=[] if late else chunks, late_chunks=chunks if late else [])
            expected = upright(mapped(pixels), orientation)
            yield Variant(name=f"png {bits} orientation {orientation} late {late}", raw=raw, expected=expected)


def pngs() -> Iterator[Variant]:
    """Color types x bits x interlacing x filters, transparency by alpha, color key and palette."""
    rng = np.random.default_rng(4)
    for interlaced, filtered in itertools.product((False, True), (False, True)):
        options: dict[str, Any] = {"interlaced": interlaced, "filtered": filtered}
        for bits in (1, 2, 4, 8):
            levels = rng.integers(0, 2**bits, (HEIGHT, WIDTH, 1), np.uint8)
            gray = as_rgb(levels * np.uint8(255 // (2**bits - 1)))
            yield Variant(name=f"png gray {bits} {options}", raw=png(levels, bits=bits, **options), expected=gray)
            palette = rng.integers(0, 256, (2**bits, 3), np.uint8)
            raw = png(levels, bits=bits, palette=palette, **options)
            yield Variant(name=f"png palette {bits} {options}", raw=raw, expected=palette[levels[..., 0]])
        for bits, samples in itertools.product((8, 16), (1, 2, 3, 4)):
            pixels = pixels_of(f"uint{bits}", samples)
            expected = as_rgb(mapped(pixels[:, :, : 1 if samples < 3 else 3]))
            if samples in {2, 4}:
                alpha = rng.integers(0, 2, (HEIGHT, WIDTH))
                pixels[:, :, -1] = alpha * (2**bits - 1)
                expected = on_white(expected, alpha)
            name = f"png {bits} x {samples} {options}"
            yield Variant(name=name, raw=png(pixels, bits=bits, **options), expected=expected)
            if samples in {1, 3}:
                key = pixels[2, 3]
                chunks = [(b"tRNS", key.astype(">u2").tobytes())]
                keyed = np.where(np.all(pixels == key, axis=2)[..., None], 255, expected).astype(np.uint8)
                yield Variant(name=f"{name} key", raw=png(pixels, bits=bits, chunks=chunks, **options), expected=keyed)


def pnms() -> Iterator[Variant]:
    """PGM and PPM of 8 and 16 bits and other maxima; text with more than 8 bits in colors is refused."""
    for maximum, samples in itertools.product((255, 4095, 65535), (1, 3)):
        dtype = ">u1" if maximum == 255 else ">u2"
        pixels = pixels_of("uint8" if maximum == 255 else "uint16", samples)
        head = f"P{5 if samples == 1 else 6} {WIDTH} {HEIGHT} {maximum}\n".encode()
        scaled = pixels if maximum == 255 else np.round(pixels * (65535 / maximum)).astype(np.uint16)
        yield Variant(
            name=f"pnm {maximum} x {samples}",
            raw=head + pixels.astype(dtype).tobytes(),
            expected=as_rgb(mapped(scaled)),
        )
    text = b"P3 1 1 999\n1 2 3\n"
    yield Variant(name="ppm text", raw=text, reason="text")
    floats = pixels_of("float32", 1)
    raw = f"Pf {WIDTH} {HEIGHT} -1.0\n".encode() + floats[::-1].astype("<f4").tobytes()
    yield Variant(name="pfm", raw=raw, expected=as_rgb(mapped(floats)))


def jpegs() -> Iterator[Variant]:
    """Modes x subsampling x progressive x orientation, which stands in several places before the first scan."""
    picture = smooth()
    filler = [b"\xff\xed" + (20_002).to_bytes(2, "big") + bytes(20_000)] * 2
    for mode, subsampling, progressive in itertools.product(("L", "RGB", "CMYK"), (0, 2), (False, True)):
        image = Image.fromarray(picture).convert(mode)
        expected = np.asarray(image.convert("RGB"))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=95, subsampling=subsampling, progressive=progressive)
        raw = file.getvalue()
        yield Variant(name=f"jpeg {mode} {subsampling} {progressive}", raw=raw, expected=expected, tolerance=5.0)
        for orientation in range(1, 9):
            exif = _segment(b"Exif\0\0" + orientation_exif(orientation))
            xmp = _segment(b'http://ns.adobe.com/xap/1.0/\0<a tiff:Orientation="%d"/>' % orientation)
            places = {"first": [exif], "far": [*filler, exif], "xmp": [*filler, xmp], "padded": [b"\xff\xff", exif]}
            for place, parts in places.items():
                if place == "padded" and progressive:
                    continue
                body = b"".join(parts)
                turned = raw[:2] + (body[: -len(exif)] + exif if place == "padded" else body) + raw[2:]
                yield Variant(
                    name=f"jpeg {mode} {subsampling} {progressive} orientation {orientation} {place}",
                    raw=turned,
                    expected=upright(expected, orientation),
                    tolerance=5.0,
                )


def _segment(body: bytes) -> bytes:
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
