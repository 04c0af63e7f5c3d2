"""Make folders of JPEG files for the benchmarks from the photographs that come with scikit-image.

Each file is a different crop of a photograph: enlarged, lighter or darker, and with sensor noise, which makes the file
as large as a camera's file of that size.
"""

import functools
import multiprocessing
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

NAMES = (
    "astronaut",
    "brick",
    "cat",
    "coffee",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
)
JPEG_QUALITY = 90
NOISE = 5.0  # standard deviation in levels: a file of 12 megapixels takes 3.1 MB, one of 500x375 64 kB
LITTLE_NOISE = 3.0  # 12 megapixels take 2.0 MB, as in bright light or from a large sensor


def make_folder(folder: Path, *, count: int, width: int, height: int, noise: float = NOISE) -> None:
    """Fill `folder` with `count` files, unless it already has as many."""
    if len(list(folder.glob("*.jpg"))) == count:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save = functools.partial(_save, folder, width=width, height=height, noise=noise)
    with multiprocessing.get_context("spawn").Pool() as pool:
        pool.map(save, range(count))


def _save(folder: Path, number: int, *, width: int, height: int, noise: float) -> None:
    unfinished = folder / f"{number:05d}.part"  # renamed when complete: a killed run leaves no partial file
    unfinished.write_bytes(_jpeg(number, width=width, height=height, noise=noise))
    unfinished.rename(unfinished.with_suffix(".jpg"))


def jpegs(count: int, *, width: int, height: int, noise: float = NOISE) -> list[bytes]:
    """Return the files of such a folder in memory."""
    return [_jpeg(number, width=width, height=height, noise=noise) for number in range(count)]


def _jpeg(number: int, *, width: int, height: int, noise: float) -> bytes:
    file = BytesIO()
    picture(number, width=width, height=height, noise=noise).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def picture(number: int, *, width: int, height: int, noise: float = NOISE) -> Image.Image:
    """Return picture `number`, which is always the same and differs from all others."""
    rng = np.random.default_rng(number)
    crop = random_crop(_photograph(NAMES[number % len(NAMES)]), rng, aspect=width / height)
    pixels = np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray(develop(pixels, _grain(height, width, noise), rng))


@functools.cache
def _photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(data, name)()).convert("RGB")


@functools.cache
def _grain(height: int, width: int, noise: float) -> NDArray[np.int16]:
    """Return sensor noise (H, W) in levels; each picture shifts it differently."""
    return np.random.default_rng(0).normal(0, noise, size=(height, width)).round().astype(np.int16)


def random_crop(photograph: Image.Image, rng: np.random.Generator, *, aspect: float) -> Image.Image:
    """Return a crop with 50 to 100 % of the largest possible width for this aspect ratio; mirror half of them."""
    largest = min(photograph.width, photograph.height * aspect)
    width = largest * rng.uniform(0.5, 1.0)
    height = width / aspect
    left = rng.uniform(0, photograph.width - width)
    top = rng.uniform(0, photograph.height - height)
    crop = photograph.crop((round(left), round(top), round(left + width), round(top + height)))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def develop(pixels: NDArray[np.int16], grain: NDArray[np.int16], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) with random exposure and noise, in 0..255."""
    shift = tuple(int(rng.integers(side)) for side in grain.shape)
    exposed = pixels + np.int16(rng.integers(-30, 31)) + np.roll(grain, shift, axis=(0, 1))[:, :, None]
    return exposed.clip(0, 255).astype(np.uint8)
