"""Valid image files of every layout that is read, from which fuzz.py makes damaged ones."""

import io
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from mocokit.data.sources.suffixes import reads_avif
from mocokit.run.demo import sample_path


def photographs() -> tuple[bytes, ...]:
    """Return one small photograph in each format, and with EXIF and XMP far from a JPEG's start."""
    with zipfile.ZipFile(sample_path("val")) as archive:
        image = Image.open(io.BytesIO(archive.read("coffee/010.jpg"))).resize((24, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [
        ("JPEG", {"quality": 80}),
        ("JPEG", {"progressive": True, "exif": exif}),
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        *([("AVIF", {"speed": 10})] if reads_avif() else []),
    ]
    files = []
    for kind, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)  # type: ignore[arg-type]
        files.append(file.getvalue())
    filler = b"\xff\xed" + (6002).to_bytes(2, "big") + bytes(6000)
    xmp = b'http://ns.adobe.com/xap/1.0/\0<a tiff:Orientation="6"/>'
    files.append(files[0][:2] + filler + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + files[0][2:])
    return tuple(files)


def tiffs() -> tuple[bytes, ...]:
    """Return TIFF files of most layouts that are read: types, bands, planes, tiles, codecs, alpha, no-data."""
    ramp = np.linspace(0, 250, 20 * 24 * 3).reshape(20, 24, 3)
    gray = ramp[..., 0]
    nodata = [(42113, "s", 0, "-5", True), (274, "H", 1, 6, True)]
    layouts: list[tuple[np.ndarray, dict[str, Any]]] = [
        (gray.astype(np.uint16), {"extratags": nodata}),
        (ramp.astype(np.uint16), {"photometric": "minisblack", "planarconfig": "contig"}),
        (ramp.astype(np.uint8), {"photometric": "minisblack", "planarconfig": "contig", "byteorder": ">"}),
        (
            ramp.transpose(2, 0, 1).astype(np.int16),
            {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 5},
        ),
        (
            ramp.astype(np.float32),
            {"photometric": "rgb", "tile": (16, 16), "compression": "deflate", "predictor": True},
        ),
        (gray.astype(np.uint32), {"compression": "lzw", "predictor": True, "bigtiff": True}),
        (gray.astype(np.float16), {"compression": "packbits"}),
        (gray.astype(np.int8), {"compression": "zstd", "byteorder": ">"}),
        (np.dstack([ramp, gray]).astype(np.uint16), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (np.dstack([gray, gray]).astype(np.uint8), {"planarconfig": "contig", "extrasamples": ["assocalpha"]}),
        (ramp.astype(np.uint16), {"photometric": "rgb", "bitspersample": 12}),
        (ramp.astype(np.uint8), {"photometric": "rgb", "compression": "jpeg"}),
        (gray.astype(np.uint8), {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}),
    ]
    files = []
    for pixels, options in layouts:
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, **{"photometric": "minisblack", **options}, metadata=None)
        files.append(file.getvalue())
    return tuple(files)


def deep_images() -> tuple[bytes, ...]:
    """Return 16-bit PNG files, gray and RGB with EXIF, a PGM, a PPM and a PFM."""
    ramp = np.linspace(0, 4095, 12 * 10 * 3).reshape(12, 10, 3)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(ramp[..., 0].astype(np.uint16)).save(file, "PNG", exif=exif)
    header = b"IHDR" + struct.pack(">2I5B", 10, 12, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in ramp)
    chunks = (header, b"tRNS" + bytes(6), b"IDAT" + zlib.compress(rows), b"IEND")
    colored = b"".join(struct.pack(">I", len(part) - 4) + part + bytes(4) for part in chunks)
    return (
        file.getvalue(),
        b"\x89PNG\r\n\x1a\n" + colored,
        b"P5 10 12 4095\n" + ramp[..., 0].astype(">u2").tobytes(),
        b"P6 10 12 65535\n" + ramp.astype(">u2").tobytes(),
        b"Pf 10 12 -1.0\n" + ramp[..., 0].astype("<f4").tobytes(),
    )


def mend_png(raw: bytes) -> bytes:
    """Return the file with valid checksums in all chunks."""
    mended = bytearray(raw)
    at = 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at : at + 4], "big")
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = struct.pack(">I", zlib.crc32(mended[at + 4 : end]))
        at = end + 4
    return bytes(mended)
