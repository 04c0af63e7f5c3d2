"""A list of images as a source."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mocokit.data.decode.decode import decode
from mocokit.data.sources.objects import ImageList
from mocokit.data.sources.open_source import open_source

MAX_PX = 10**6


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_arrays_are_read_as_they_are() -> None:
    images = [_noise(5, 4), _noise(6, 7, 3)]
    source = open_source(images)
    assert len(source) == 2
    assert [source.name(index) for index in (0, 1)] == ["0", "1"]
    assert (source.labels, source.class_names) == (None, ())
    assert all(source.read(index) is images[index] for index in (0, 1)), "without a copy"


def test_a_view_with_negative_strides_is_read_as_plain_pixels() -> None:
    mirrored = _noise(6, 7, 3)[:, ::-1]
    pixels = open_source([mirrored]).read(0)
    assert isinstance(pixels, np.ndarray)
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, mirrored)


def _in_modes() -> dict[str, Image.Image]:
    colored = Image.fromarray(_noise(8, 9, 4), "RGBA")
    palette = colored.convert("RGB").quantize(16)
    palette.info["transparency"] = 3
    images = {mode: colored.convert(mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "P")}
    deep = Image.fromarray(_noise(8, 9).astype(np.uint16) * 257)
    return {**images, "P with transparency": palette, deep.mode: deep}


@pytest.mark.parametrize("mode", _in_modes())
def test_pil_images_become_the_pixels_that_their_png_file_decodes_to(mode: str) -> None:
    image = _in_modes()[mode]
    file = io.BytesIO()
    image.save(file, "PNG")
    ranges = {"uint16": (1000.0, 60000.0)}
    decoded = decode(file.getvalue(), max_image_px=MAX_PX, ranges=ranges)
    assert decode(open_source([image]).read(0), max_image_px=MAX_PX, ranges=ranges) == decoded


def test_a_photograph_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    image = Image.fromarray(_noise(8, 12, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    opened = Image.open(tmp_path / "a.png")
    expected = decode((tmp_path / "a.png").read_bytes(), max_image_px=MAX_PX)
    assert expected.size == (8, 12)
    assert np.array_equal(np.asarray(open_source([opened]).read(0)), np.asarray(expected))


def test_a_list_can_have_labels_and_be_sent_to_workers() -> None:
    source = open_source(ImageList([_noise(5, 4), _noise(5, 4)], labels=(1, 0), class_names=("cat", "dog")))
    again = pickle.loads(pickle.dumps(source))
    assert (again.labels, again.class_names) == ((1, 0), ("cat", "dog"))
    assert np.array_equal(again.read(1), source.read(1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), r"image 1 is a float64 array \(4, 4, 3\); give PIL images or uint8 arrays"),
        (_noise(3, 8, 8), r"image 1 is a uint8 array \(3, 8, 8\)"),
        (_noise(4, 0), r"image 1 is a uint8 array \(4, 0\)"),
        ("a.jpg", "image 1 is a str"),
    ],
)
def test_an_item_that_is_no_image_is_an_error(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^data=\[\.\.\.\]: {message}"):
        open_source([_noise(4, 4), image])  # type: ignore[list-item]


def test_a_damaged_file_in_a_list_is_an_error_that_names_it() -> None:
    file = io.BytesIO()
    Image.fromarray(_noise(50, 50, 3)).save(file, "PNG")
    opened = Image.open(io.BytesIO(file.getvalue()[:2000]))
    with pytest.raises(ValueError, match=r"^data=\[\.\.\.\]: image 0 can't be read"):
        open_source([opened])


def test_an_empty_list_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^data=ImageList\(\.\.\.\): holds no images"):
        open_source([])
