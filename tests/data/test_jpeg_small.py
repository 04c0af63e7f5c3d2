"""decode_small against what libjpeg-turbo and a cosine transform of whole blocks say, and against damage."""

from io import BytesIO

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.decode.jpeg import LARGE_BYTES, decode_jpeg, read_jpeg_header
from mocokit.data.jpeg_layout import read_layout
from mocokit.data.jpeg_small import decode_small
from tests.jpeg_files import ARRANGEMENTS, CODINGS, Options, jpeg_file

BRIGHTNESS = np.array([0.299, 0.587, 0.114])


def _small(raw: bytes, fraction: int, part: tuple[int, int, int, int] = (0, 0, 10**6, 10**6)) -> NDArray[np.uint8]:
    layout = read_layout(raw)
    assert layout is not None
    pixels = decode_small(raw, layout, fraction=fraction, part=part)
    assert pixels is not None
    return pixels


def _by_libjpeg(raw: bytes, fraction: int) -> NDArray[np.uint8]:
    height, width = simplejpeg.decode_jpeg_header(raw)[:2]
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        raw, min_height=-(-height // fraction), min_width=-(-width // fraction), min_factor=1
    )
    return pixels


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_an_eighth_is_libjpegs(arrangement: Options, coding: Options) -> None:
    """The mean of each block; of colors that have half the resolution we read more than libjpeg does."""
    raw = jpeg_file(**arrangement, **coding)
    ours = _small(raw, 8)
    theirs = _by_libjpeg(raw, 8)
    assert ours.shape == theirs.shape
    error = ours.astype(int) - theirs
    assert np.abs(error @ BRIGHTNESS).max() < 1.5
    if arrangement.get("subsampling") in {None, 0}:
        assert np.abs(error).max() <= 1


def _cosine_transform(size: int) -> NDArray[np.float64]:
    """The orthonormal matrix (frequency, place)."""
    frequency, place = np.mgrid[:size, :size]
    rows: NDArray[np.float64] = np.cos((place + 0.5) * frequency * np.pi / size) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return rows


@pytest.mark.parametrize("coding", CODINGS)
def test_a_quarter_is_the_low_frequencies_of_each_block(coding: Options) -> None:
    raw = jpeg_file(120, 208, gray=True, **coding)
    whole = np.asarray(Image.open(BytesIO(raw)), np.float64)
    blocks = whole.reshape(15, 8, 26, 8).transpose(0, 2, 1, 3)
    shrink = _cosine_transform(2).T @ _cosine_transform(8)[:2] / 2  # (2, 8)
    wanted = (shrink @ blocks @ shrink.T).transpose(0, 2, 1, 3).reshape(30, 52)
    error = _small(raw, 4)[:, :, 0] - wanted
    assert np.abs(error).max() < 1.1  # both round
    assert np.abs(error).mean() < 0.35


@pytest.mark.parametrize("fraction", [4, 8])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_it_looks_like_the_shrunk_image(arrangement: Options, fraction: int) -> None:
    raw = jpeg_file(240, 320, detail=4, **arrangement)
    image = Image.open(BytesIO(raw)).convert("RGB")
    wanted = np.asarray(image.resize((320 // fraction, 240 // fraction), Image.Resampling.BOX), np.float64)
    assert np.abs(_small(raw, fraction) - wanted).mean() < 1


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_part_has_the_pixels_of_the_whole(arrangement: Options, coding: Options) -> None:
    raw = jpeg_file(**arrangement, **coding)
    rng = np.random.default_rng(1)
    for fraction in (4, 8):
        whole = _small(raw, fraction)
        for _ in range(8):
            (top, bottom), (left, right) = (np.sort(rng.integers(0, side, 2)) for side in (123, 211))
            part = _small(raw, fraction, (top, left, bottom + 1, right + 1))
            seen = np.s_[top // fraction : bottom // fraction + 1, left // fraction : right // fraction + 1]
            np.testing.assert_array_equal(part[seen], whole[seen])


@pytest.mark.parametrize(
    "raw",
    [
        jpeg_file(progressive=True),
        jpeg_file()[:-400],
        jpeg_file(keep_rgb=True),
        b"\xff\xd8\xff",
        b"",
        jpeg_file().replace(b"\xff\xc4", b"\xff\xc5"),
    ],
    ids=["progressive", "cut short", "red, green and blue", "no header", "empty", "no codes"],
)
def test_what_is_no_plain_file_is_left_to_others(raw: bytes) -> None:
    assert read_layout(raw) is None


@pytest.mark.parametrize(
    ("raw", "is_ours"),
    [
        (jpeg_file(), False),
        (jpeg_file(400, 600, detail=20), True),
        (jpeg_file(400, 600, detail=20, optimize=True), False),
        (jpeg_file(400, 600, detail=20, progressive=True), False),
        (jpeg_file(800, 1200, quality=97, detail=30), True),
        (jpeg_file(800, 1200, quality=97, detail=30, optimize=True), True),
    ],
    ids=["few bytes", "more", "more, codes of its own", "more, progressive", "many", "many, codes of its own"],
)
def test_who_reads_a_file(raw: bytes, is_ours: bool) -> None:
    header = read_jpeg_header(raw)
    assert header is not None
    assert (header.layout is not None) == (len(raw) >= LARGE_BYTES)
    by_libjpeg = _by_libjpeg(raw, 4)
    wanted = _small(raw, 4) if is_ours else by_libjpeg
    np.testing.assert_array_equal(decode_jpeg(raw, header, fraction=4), wanted)
    assert is_ours == (not np.array_equal(wanted, by_libjpeg)), "both read it alike: this shows nothing"


def test_damage_above_the_parts_bottom_is_found_and_left_to_libjpeg() -> None:
    raw = jpeg_file(800, 1200, quality=97, detail=30)
    start = raw.index(b"\xff\xda") + 14
    end = len(raw) - 2
    cut = raw[: start + (end - start) // 2] + raw[end:]  # half of the data, and an end
    header = read_jpeg_header(cut)
    assert header is not None
    assert header.layout is not None
    assert decode_small(cut, header.layout, fraction=4, part=(0, 0, 800, 1200)) is None
    assert decode_small(cut, header.layout, fraction=4, part=(0, 0, 200, 1200)) is not None
    with pytest.raises(ValueError, match="premature end"):
        decode_jpeg(cut, header, fraction=4)


def test_turned_files_are_turned_whole() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = jpeg_file(800, 1200, quality=97, detail=30, exif=exif)
    header = read_jpeg_header(raw)
    assert header is not None
    pixels = decode_jpeg(raw, header, fraction=4, crops=[(20, 10, 50, 60)])
    np.testing.assert_array_equal(pixels, np.rot90(_small(raw, 4), 3))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_bits_lead_beyond_an_array(data: st.DataObject) -> None:
    """Any bytes changed: pixels of the right shape, or none."""
    arrangement = data.draw(st.sampled_from(ARRANGEMENTS))
    raw = bytearray(jpeg_file(64, 96, restart_marker_blocks=2, **arrangement))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(2, len(raw) - 1))] = data.draw(st.integers(0, 255))
    layout = read_layout(bytes(raw))
    if layout is None or layout.height * layout.width > 10**7:
        return
    pixels = decode_small(bytes(raw), layout, fraction=4, part=(8, 8, 56, 80))
    assert pixels is None or pixels.shape == (-(-layout.height // 4), -(-layout.width // 4), 3)
