"""One value range for all images of a data set, for each type of samples of more than 8 bits."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.decode.decode import DecodeError, decode
from mocokit.data.decode.deep import GIVEN, ValueRanges
from mocokit.data.sources.open_source import open_source
from mocokit.data.value_range import MAX_IMAGES, MeasuredRanges, check_ranges, measure_ranges
from tests.data.decode.written_files import tiff

MAX_PX = 10**6
Array = NDArray[Any]


def _png16(pixels: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint16)).save(file, "PNG")
    return file.getvalue()


def _measure(folder: Path, known: ValueRanges | None = None, *, seed: int = 0) -> MeasuredRanges:
    return measure_ranges(open_source(folder), max_image_px=MAX_PX, seed=seed, known=known or {})


def _ramp(high: float, *, samples: int = 1) -> Array:
    ramp = np.linspace(0, high, 64 * 48).reshape(48, 64, 1)
    return np.repeat(ramp, samples, axis=2)


def _write(folder: Path, *files: bytes, suffix: str = ".tif") -> Path:
    folder.mkdir(exist_ok=True)
    for number, raw in enumerate(files):
        (folder / f"{number:03d}{suffix}").write_bytes(raw)
    return folder


def _xray() -> tuple[bytes, str, str]:
    return _png16(_ramp(4095)[..., 0]), ".png", "uint16"


def _reflectances() -> tuple[bytes, str, str]:
    return tiff(_ramp(3000, samples=3).astype(np.uint16), photometric=2), ".tif", "uint16"


def _heights() -> tuple[bytes, str, str]:
    return tiff((_ramp(900) - 300).astype(np.int16), photometric=1, order=">"), ".tif", "int16"


def _counts() -> tuple[bytes, str, str]:
    return tiff((_ramp(200_000) + 2**31).astype(np.uint32), photometric=1), ".tif", "uint32"


def _unit_floats() -> tuple[bytes, str, str]:
    return tiff(_ramp(1).astype(np.float32), photometric=1), ".tif", "float32"


def _kelvins() -> tuple[bytes, str, str]:
    return tiff(_ramp(60).astype(np.float16) + np.float16(270), photometric=1, compression=8), ".tif", "float16"


def _signed_bytes() -> tuple[bytes, str, str]:
    return tiff((_ramp(150) - 90).astype(np.int8), photometric=1), ".tif", "int8"


def _packed_12_bits() -> tuple[bytes, str, str]:
    return tiff((_ramp(1000)).astype(np.uint16), photometric=1, bits=12), ".tif", "uint16"


def _pgm() -> tuple[bytes, str, str]:
    return b"P5 64 48 65535\n" + _ramp(2500)[..., 0].astype(">u2").tobytes(), ".tif", "uint16"


KINDS = (_xray, _reflectances, _heights, _counts, _unit_floats, _kelvins, _signed_bytes, _packed_12_bits, _pgm)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_types_values_becomes_all_gray_levels(
    tmp_path: Path, kind: Callable[[], tuple[bytes, str, str]]
) -> None:
    raw, suffix, sample_type = kind()
    measured = _measure(_write(tmp_path / "d", raw, suffix=suffix))
    assert list(measured.ranges) == [sample_type]
    assert not measured.warnings
    assert sample_type in measured.notes[0]
    seen = np.asarray(decode(raw, max_image_px=MAX_PX, ranges=measured.ranges))
    assert (seen.min(), seen.max()) == (0, 255)
    assert len(np.unique(seen)) > (140 if sample_type in {"int8", "float16"} else 250)
    flat = seen[..., 0].reshape(-1).astype(int)
    assert np.all(np.diff(flat) >= 0), "the ramp rises"
    assert np.abs(flat - np.linspace(0, 255, len(flat))).max() < 2.6


def test_all_images_share_one_range_so_a_dark_one_stays_dark(tmp_path: Path) -> None:
    folder = _write(tmp_path / "d", _png16(_ramp(4000)[..., 0]), _png16(_ramp(400)[..., 0]), suffix=".png")
    ranges = _measure(folder).ranges
    bright, dark = (
        np.asarray(decode(raw.read_bytes(), max_image_px=MAX_PX, ranges=ranges)) for raw in sorted(folder.iterdir())
    )
    assert bright.max() == 255
    assert 24 <= dark.max() <= 27, "a tenth"


def test_no_data_and_transparent_pixels_and_hot_pixels_do_not_widen_the_range(tmp_path: Path) -> None:
    heights = (_ramp(900) - 300).astype(np.int16)
    heights[:10] = -32768
    floats = _ramp(1).astype(np.float32)
    floats[:3] = np.nan
    floats[3] = np.inf
    floats[4] = -np.inf
    counts = np.concatenate([_ramp(1000), _ramp(1000)], axis=2).astype(np.uint16)
    counts[..., 1] = 65535
    counts[:20, :, 0] = 60000
    counts[:20, :, 1] = 0  # transparent
    counts[30, 30, 0] = 65000  # one hot pixel
    depths = _ramp(50).astype(np.float32)
    depths[:3] = np.float32(-3.4028234663852886e38)
    far = tiff(depths + np.float32(1), photometric=1, tags=[(42113, 2, b"-1.7976931348623157e+308\0")])
    tagged = tiff(depths, photometric=1, tags=[(42113, 2, b"-3.4028234663852886e+38\0")])
    assert _measure(_write(tmp_path / "e", tagged)).ranges["float32"] == pytest.approx((0, 50), abs=4)
    assert decode(far, max_image_px=MAX_PX, ranges={GIVEN: (0.0, 9.0)}).size == (64, 48)
    folder = _write(
        tmp_path / "d",
        tiff(heights, photometric=1, tags=[(42113, 2, b"-32768\0")]),
        tiff(floats, photometric=1),
        tiff(counts, photometric=1, extra=[2]),
    )
    measured = _measure(folder)
    assert measured.ranges["int16"][0] > -301
    assert measured.ranges["float32"] == pytest.approx((0.0, 1.0), abs=0.2)
    assert measured.ranges["uint16"][1] < 1001
    assert any("% hold no data" in note and "21 %" in note for note in measured.notes), measured.notes
    seen = np.asarray(decode((folder / "000.tif").read_bytes(), max_image_px=MAX_PX, ranges=measured.ranges))
    assert seen[:10].max() == 0


def test_8_bit_images_have_no_range_and_a_mixed_set_has_one_for_the_deep_ones(
    tmp_path: Path, photograph: Image.Image
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for number in range(5):
        photograph.save(folder / f"{number}.png")
        photograph.save(folder / f"{number}.jpg")
    assert _measure(folder) == MeasuredRanges(ranges={})
    (folder / "deep.png").write_bytes(_png16(_ramp(4095)[..., 0]))
    ranges = _measure(folder).ranges
    assert ranges["uint16"] == pytest.approx((0, 4095), abs=10)
    raw = (folder / "0.png").read_bytes()
    assert np.array_equal(np.asarray(decode(raw, max_image_px=MAX_PX, ranges=ranges)), np.asarray(photograph))


@pytest.mark.parametrize(
    ("pixels", "known", "levels"),
    [(_ramp(4095), {GIVEN: (0.0, 65535.0)}, 17), (np.round(_ramp(5)), {}, 6), (np.full((9, 9, 1), 7), {}, 1)],
)
def test_fewer_than_64_levels_are_told(tmp_path: Path, pixels: Array, known: ValueRanges, levels: int) -> None:
    measured = _measure(_write(tmp_path / "d", _png16(pixels[..., 0]), suffix=".png"), known)
    assert len(measured.warnings) == 1
    assert f"leaves {levels} of 256 levels of the uint16 samples" in measured.warnings[0]


def test_a_known_range_is_kept_and_other_types_are_measured(tmp_path: Path) -> None:
    folder = _write(tmp_path / "d", _reflectances()[0], _unit_floats()[0])
    measured = _measure(folder, {"uint16": (5.0, 2000.0)})
    assert measured.ranges["uint16"] == (5.0, 2000.0)
    assert measured.ranges["float32"] == pytest.approx((0, 1), abs=0.01)
    assert _measure(folder, {GIVEN: (1.0, 9.0)}).ranges == {GIVEN: (1.0, 9.0)}


def test_the_measure_depends_on_the_seed_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [_png16(rng.integers(0, 1000 + 20 * number, (120, 110))) for number in range(MAX_IMAGES + 20)]
    folder = _write(tmp_path / "d", *files, suffix=".png")
    assert _measure(folder) == _measure(folder)
    assert _measure(folder).ranges != _measure(folder, seed=1).ranges


def test_a_type_that_was_not_measured_is_a_bad_image_that_names_the_setting() -> None:
    with pytest.raises(DecodeError, match=r"float32 samples, but no value range .* --data.value-range LOW HIGH"):
        decode(_unit_floats()[0], max_image_px=MAX_PX, ranges={"uint16": (0.0, 9.0)})


def test_bad_images_are_left_out_of_the_measure(tmp_path: Path) -> None:
    raw = _reflectances()[0]
    folder = _write(tmp_path / "d", raw, raw[: len(raw) // 2], b"", b"II*\0garbage")
    assert _measure(folder).ranges == _measure(_write(tmp_path / "e", raw)).ranges


@pytest.mark.parametrize("table", [[], {"uint16": (1.0, 1.0)}, {"uint16": (0.0, np.inf)}, {"uint16": (1.0,)}, {"a": 3}])
def test_a_table_of_ranges_that_makes_no_sense_is_an_error(table: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        check_ranges(table)


def test_a_frequent_value_far_from_all_others_is_told_with_the_range_of_the_others(tmp_path: Path) -> None:
    """GDAL_NODATA tells no data, but not every program writes it."""
    rng = np.random.default_rng(0)
    for number, (name, lonely) in enumerate((("a", -9999.0), ("b", 9.9e36))):
        for i in range(4):
            pixels = rng.random((32, 32)).astype(np.float32)
            pixels[:8] = lonely
            (tmp_path / name).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / name / f"{i}.tif", pixels)
        measured = measure_ranges(open_source(tmp_path / name), max_image_px=10**6, seed=0, known={})
        told = measured.warnings[0]
        assert re.search(r"25 % of the float32 values are (-9999|9.9e\+36), far from the others", told), number
        low, high = (float(part) for part in re.findall(r"--data.value-range (\S+) (\S+)", told)[0])
        assert 0 < low < high < 1


def test_further_pages_of_a_tiff_are_told_but_not_its_overviews(tmp_path: Path) -> None:
    page = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for name, kinds in (("pages", [0, 0, 0]), ("overviews", [0, 1, 1])):
        (tmp_path / name).mkdir()
        with tifffile.TiffWriter(tmp_path / name / "0.tif") as file:
            for kind in kinds:
                file.write(page, subfiletype=kind, photometric="minisblack")
    found = measure_ranges(open_source(tmp_path / "pages"), max_image_px=10**6, seed=0, known={}).warnings
    assert found[0].startswith("data: 1 of 1 sampled TIFF files have several pages, for example ")
    assert not measure_ranges(open_source(tmp_path / "overviews"), max_image_px=10**6, seed=0, known={}).warnings
