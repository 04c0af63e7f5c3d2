"""Hostile and unusual TIFF files: bounded in time and memory, refused by name; and what needs imagecodecs."""

import contextlib
import io
import json
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Literal

import imagecodecs
import numpy as np
import pytest
import tifffile

from mocokit.data.decode.decode import DecodeError, decode
from mocokit.data.decode.deep import GIVEN
from mocokit.data.decode.tiff_tags import has_more_pages
from tests.data.decode.written_files import tiff

LIMIT = 10**6
SMALL = np.zeros((20, 30, 3), np.uint16)
BOMB = bytes(2**26)


def _refusal(raw: bytes, max_image_px: int = LIMIT) -> str:
    """Return why a file is refused; it takes neither long nor much memory."""
    start = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(DecodeError) as caught:
        decode(raw, max_image_px=max_image_px, ranges={GIVEN: (0.0, 99.0)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23 + 4 * len(raw)
    assert time.perf_counter() - start < 2
    return str(caught.value)


def test_a_size_beyond_the_limit_is_refused_before_anything_is_read() -> None:
    assert _refusal(tiff(SMALL, photometric=2), 100) == "30x20 pixels, more than data.max_image_px=100"
    wide = tiff(SMALL, photometric=2, blob=b"x", tags=[(254, 4, [0])])
    at = wide.index((256).to_bytes(2, "little") + (4).to_bytes(2, "little")) + 8
    assert _refusal(wide[:at] + (2**31 - 1).to_bytes(4, "little") + wide[at + 4 :]).startswith("2147483647x20 pixels")


@pytest.mark.parametrize("side", [2**16, 2**31])
def test_a_tile_far_larger_than_the_image_is_refused(side: int) -> None:
    raw = tiff(SMALL, photometric=2, compression=8, tags=[(322, 4, [side]), (323, 4, [side])])
    assert "more than needed" in _refusal(raw)


@pytest.mark.parametrize(
    ("compression", "blob"),
    [(8, zlib.compress(BOMB)), (5, imagecodecs.lzw_encode(BOMB)), (50000, imagecodecs.zstd_encode(BOMB))],
)
def test_a_strip_that_unpacks_to_more_than_its_pixels_takes_no_memory_for_it(compression: int, blob: bytes) -> None:
    raw = tiff(SMALL, photometric=2, compression=compression, blob=blob)
    tracemalloc.start()
    start = time.perf_counter()
    try:
        image = decode(raw, max_image_px=LIMIT, ranges={GIVEN: (0.0, 99.0)})
        assert not np.asarray(image).any(), "the first bytes are the pixels"
    except DecodeError:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22
    assert time.perf_counter() - start < 1


def test_strips_that_overlap_are_refused() -> None:
    raw = tiff(SMALL, photometric=2, rows=1, compression=8)
    sizes = raw.index((279).to_bytes(2, "little") + (4).to_bytes(2, "little") + (20).to_bytes(4, "little"))
    at = int.from_bytes(raw[sizes + 8 : sizes + 12], "little")
    longer = raw[:at] + (len(raw) // 2).to_bytes(4, "little") * 20 + raw[at + 80 :]
    assert "strips or tiles overlap" in _refusal(longer)


def test_a_tag_with_absurdly_many_values_is_refused() -> None:
    raw = tiff(SMALL, photometric=2, tags=[(50000, 4, [1, 2, 3])])
    at = raw.index((50000).to_bytes(2, "little"))
    assert "tag 50000 has 2147483647 values" in _refusal(raw[: at + 4] + b"\xff\xff\xff\x7f" + raw[at + 8 :])


def test_pages_in_a_loop_are_not_followed() -> None:
    raw = tiff(SMALL, photometric=2)
    num_tags = int.from_bytes(raw[8:10], "little")
    at = 10 + 12 * num_tags
    decode(raw[:at] + (8).to_bytes(4, "little") + raw[at + 4 :], max_image_px=LIMIT, ranges={GIVEN: (0.0, 9.0)})


def test_an_empty_strip_is_not_read_as_black() -> None:
    raw = tiff(SMALL, photometric=2, rows=10)
    sizes = raw.index((279).to_bytes(2, "little") + (4).to_bytes(2, "little") + (2).to_bytes(4, "little"))
    at = int.from_bytes(raw[sizes + 8 : sizes + 12], "little")
    assert "empty strips" in _refusal(raw[:at] + bytes(4) + raw[at + 4 :])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_file_that_ends_within_its_pixels_is_refused(dtype: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 99, (20, 30, 3)).astype(dtype)
    for compression, rows, tile, planar in ((1, None, None, 1), (8, 5, None, 1), (1, None, 16, 1), (8, 7, None, 2)):
        raw = tiff(pixels, photometric=2, compression=compression, rows=rows, tile=tile, planar=planar)
        for cut in (30, 200, len(raw) - 200, len(raw) - 1):
            _refusal(raw[:cut])


WITHOUT_CODECS = """
import json, sys
from pathlib import Path
sys.modules["imagecodecs"] = None
from mocokit.data.decode.decode import DecodeError, decode
answers = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        image = decode(path.read_bytes(), max_image_px=10**6, ranges={"given": (0.0, 99.0)})
        answers[path.name] = image.getpixel((0, 0))[0]
    except DecodeError as error:
        answers[path.name] = str(error)
print(json.dumps(answers))
"""


def test_without_imagecodecs_common_files_are_read_and_others_name_the_package(tmp_path: Path) -> None:
    kinds: dict[str, dict[str, object]] = {
        "raw": {},
        "deflate": {"compression": "deflate"},
        "predictor": {"compression": "deflate", "predictor": True},
        "lzw": {"compression": "lzw"},
        "zstd": {"compression": "zstd"},
        "packbits": {"compression": "packbits"},
    }
    for dtype in ("uint8", "uint16"):
        for name, options in kinds.items():
            file = io.BytesIO()
            tifffile.imwrite(file, np.full((20, 30, 3), 99, dtype), photometric="rgb", **options)  # type: ignore[arg-type]
            (tmp_path / f"{name} {dtype}").write_bytes(file.getvalue())
    (tmp_path / "12 bits").write_bytes(tiff(SMALL, photometric=2, bits=12))
    (tmp_path / "bomb").write_bytes(tiff(SMALL, photometric=2, compression=8, blob=zlib.compress(BOMB)))
    program = [sys.executable, "-c", WITHOUT_CODECS, str(tmp_path)]
    answers = json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    for name in ("raw", "deflate", "predictor"):
        assert (answers[f"{name} uint8"], answers[f"{name} uint16"]) == (99, 255)
    assert (answers["lzw uint8"], answers["packbits uint8"]) == (99, 99)
    assert "more bytes than its pixels have" in answers["bomb"]
    for name in ("lzw uint16", "packbits uint16", "zstd uint8", "zstd uint16", "12 bits"):
        assert answers[name].startswith("a TIFF that needs imagecodecs (")
        assert answers[name].endswith("): pip install 'mocokit[tiff]'")


EXTREME = (0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


@pytest.mark.parametrize("is_big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("number", EXTREME)
def test_any_number_in_place_of_a_page_or_of_its_tags_is_no_crash(number: int, order: str, is_big: bool) -> None:
    """The place of the first page, the number of its tags, and the place of the second page, in turn."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, byteorder="<" if order == "<" else ">", bigtiff=is_big) as writer:
        for page in (SMALL, SMALL):
            writer.write(page, photometric="rgb", metadata=None)
    raw = file.getvalue()
    assert has_more_pages(raw)
    width, count_width, entry = (8, 8, 20) if is_big else (4, 2, 12)
    byteorder: Literal["little", "big"] = "little" if order == "<" else "big"
    first = int.from_bytes(raw[width : 2 * width], byteorder)
    num_tags = int.from_bytes(raw[first : first + count_width], byteorder)
    second = first + count_width + num_tags * entry
    for at, size in ((width, width), (first, count_width), (second, width)):
        changed = raw[:at] + (number % 2 ** (8 * size)).to_bytes(size, byteorder) + raw[at + size :]
        has_more_pages(changed)
        with contextlib.suppress(DecodeError):
            decode(changed, max_image_px=LIMIT, ranges={GIVEN: (0.0, 99.0)})
