from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from mocokit.data.decode.jpeg import decode_jpeg, read_jpeg_header


def _photo(height: int = 96, width: int = 144) -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def _file(image: Image.Image, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 20}]
)
def test_full_size_pixels_equal_pillows(options: dict[str, object]) -> None:
    raw = _file(_photo(), **options)
    header = read_jpeg_header(raw)
    assert header is not None
    np.testing.assert_array_equal(decode_jpeg(raw, header, fraction=1), np.asarray(Image.open(BytesIO(raw))))


def test_gray_becomes_three_channels() -> None:
    raw = _file(_photo().convert("L"))
    header = read_jpeg_header(raw)
    assert header is not None
    expected = np.asarray(Image.open(BytesIO(raw)).convert("RGB"))
    np.testing.assert_array_equal(decode_jpeg(raw, header, fraction=1), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_at_every_size(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = _file(_photo(), exif=exif)
    header = read_jpeg_header(raw)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(raw)))
    assert header is not None
    assert (header.width, header.height) == upright.size
    np.testing.assert_array_equal(decode_jpeg(raw, header, fraction=1), np.asarray(upright))
    for fraction in (2, 4, 8):
        pixels = decode_jpeg(raw, header, fraction=fraction)
        assert pixels.shape == (-(-header.height // fraction), -(-header.width // fraction), 3)
        small = np.asarray(upright.resize(pixels.shape[1::-1], Image.Resampling.BOX), float)
        assert np.abs(pixels - small).mean() < 6  # a wrong rotation differs by 40 or more


def test_a_file_with_broken_exif_is_upright() -> None:
    raw = _file(_photo(), exif=b"Exif\0\0nonsense")
    header = read_jpeg_header(raw)
    assert header is not None
    assert header.orientation == 1


def test_a_file_that_is_no_ordinary_jpeg_has_no_header() -> None:
    png = BytesIO()
    _photo().save(png, "PNG")
    for raw in (b"", b"text", png.getvalue(), _file(_photo().convert("CMYK")), _file(_photo())[:40]):
        assert read_jpeg_header(raw) is None


def test_a_truncated_jpeg_is_an_error() -> None:
    raw = _file(_photo())
    header = read_jpeg_header(raw[: len(raw) // 2])
    assert header is not None
    with pytest.raises(ValueError, match="Premature end"):
        decode_jpeg(raw[: len(raw) // 2], header, fraction=1)
