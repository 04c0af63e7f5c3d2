import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mocokit.data.decode.decode import DecodeError, decode
from tests.data.decode.written_files import tiff

LIMIT = 1_000_000


def _bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _pixels(raw: bytes | np.ndarray) -> np.ndarray:
    image = decode(raw, max_image_px=LIMIT)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_are_decoded_exactly(photograph: Image.Image, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(_pixels(_bytes(photograph, kind, **options)), np.asarray(photograph))


def test_jpeg_is_decoded_as_pillow_does(photograph: Image.Image) -> None:
    raw = _bytes(photograph, "JPEG", quality=90)
    assert np.array_equal(_pixels(raw), np.asarray(Image.open(io.BytesIO(raw))))


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_gray_and_palette_become_rgb(photograph: Image.Image, mode: str) -> None:
    image = photograph.convert(mode)
    assert np.array_equal(_pixels(_bytes(image, "PNG")), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colors(photograph: Image.Image) -> None:
    got = _pixels(_bytes(photograph.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(got.astype(int) - np.asarray(photograph)).mean() < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_white(photograph: Image.Image, mode: str) -> None:
    image = photograph.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image = image.convert(mode)
    colour = np.asarray(image.convert("RGB"), float)
    alpha = np.asarray(image.getchannel("A"), float)[..., None] / 255
    want = colour * alpha + 255 * (1 - alpha)
    assert np.abs(_pixels(_bytes(image, "PNG")) - want).max() <= 1.5


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((0, 0), 1)
    got = _pixels(_bytes(image, "PNG", transparency=0))
    assert got[1, 1].tolist() == [255, 255, 255]
    assert got[0, 0].tolist() == [0, 200, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_samples_without_a_value_range_are_refused(kind: str) -> None:
    samples = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    with pytest.raises(DecodeError, match=r"uint16 samples, but no value range .* --data\.value-range LOW HIGH"):
        decode(_bytes(Image.fromarray(samples), kind), max_image_px=LIMIT)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(photograph: Image.Image, orientation: int, kind: str) -> None:
    """Each of the 8 orientations, written so that the upright picture is the original."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow transpose codes: stored = undo(original)
    stored = photograph if orientation == 1 else photograph.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(_pixels(_bytes(stored, kind, exif=exif, **options)), np.asarray(photograph))


def test_arrays_of_idx_files_pass_through() -> None:
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(_pixels(gray), np.repeat(gray[..., None], 3, axis=2))


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + body
        + struct.pack(">I", zlib.crc32(body))
        + struct.pack(">I", 1)
        + b"IDAT\0"
    )


@pytest.mark.parametrize("shape", [(2000, 2000), (100_000, 100_000)])
def test_bombs_are_refused_by_size_before_decoding(shape: tuple[int, int]) -> None:
    with pytest.raises(DecodeError, match="pixels"):
        decode(_png_header(*shape), max_image_px=LIMIT)


def test_a_huge_16_bit_tiff_is_refused_before_decoding() -> None:
    raw = tiff(np.zeros((20, 30, 3), np.uint16), photometric=2)
    with pytest.raises(DecodeError, match=r"30x20 pixels, more than data.max_image_px=100"):
        decode(raw, max_image_px=100)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_damaged_files_raise_decode_error_and_never_crash(photograph: Image.Image, kind: str) -> None:
    raw = _bytes(photograph, kind)
    rng = np.random.default_rng(0)
    for cut in (0, 1, 10, len(raw) // 3, len(raw) // 2):
        with pytest.raises(DecodeError):
            decode(raw[:cut], max_image_px=LIMIT)
    for _ in range(200):  # changed bytes may still decode; if not, the error is a DecodeError
        damaged = bytearray(raw)
        for position in rng.integers(0, len(raw), 8):
            damaged[position] = int(rng.integers(256))
        with contextlib.suppress(DecodeError):
            decode(bytes(damaged), max_image_px=LIMIT)


def test_error_messages_name_the_reason(photograph: Image.Image) -> None:
    for raw, reason in ((b"", "empty file"), (b"hello world", "not an image in a known format")):
        with pytest.raises(DecodeError, match=reason):
            decode(raw, max_image_px=LIMIT)
    with pytest.raises(DecodeError, match="truncated"):
        decode(_bytes(photograph, "JPEG")[:1500], max_image_px=LIMIT)
