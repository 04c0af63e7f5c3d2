"""Compare the fast augmentation with Pillow's and torchvision's (`mocokit verify --augment`).

Pixels: each operation and each recipe is compared with the reference pipeline at the same parameters. Draws: the drawn
parameters are compared with those of torchvision's transforms, by the two-sample Kolmogorov-Smirnov test.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import torch
import torchvision.transforms as T
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.augment.batched import augment_batch, pack_params
from mocokit.data.augment.compiled import apply_params_compiled
from mocokit.data.augment.recipes import (
    AUG,
    AUG_PLUS,
    MOCO_V3_PAIR,
    SIMCLR,
    Jitter,
    Recipe,
    ViewParams,
    apply_params,
    draw_params,
)
from mocokit.data.decode.decode import decode
from mocokit.data.pipelines import fast_views, reference_views
from mocokit.data.sources.sources import ImageSource
from mocokit.data.value_range import measure_ranges
from mocokit.randomness import Purpose, generator, permutation

KS_LIMIT = 2.7
"""Limit for sqrt(n / 2) times the statistic; equal distributions exceed it in one of a million tests."""

VIEW_PX = 64
"""Side of the compared views."""

ODD_CROPS = 100
"""Tall crops, and as many wide ones, that are compared for each filter."""

_Pixels = NDArray[np.uint8]

_Samples = dict[str, list[float]]
"""Parameter -> its drawn values."""


@dataclass(frozen=True, kw_only=True)
class PixelParity:
    """Difference between a fast implementation and the reference, in levels of 0..255."""

    engine: str
    operation: str
    num_views: int
    max_error: int
    mean_error: float
    allowed: float
    """Largest mean error that passes; 0 means that every pixel must be equal."""

    @property
    def passes(self) -> bool:
        """True if the difference is within the allowed error."""
        return self.mean_error <= self.allowed


@dataclass(frozen=True, kw_only=True)
class DrawParity:
    """Difference between our distribution of a drawn parameter and torchvision's."""

    parameter: str
    statistic: float
    """Kolmogorov-Smirnov distance times sqrt(n / 2)."""

    @property
    def passes(self) -> bool:
        """True if the distributions can be equal."""
        return self.statistic <= KS_LIMIT


def parity_images(source: ImageSource, *, count: int, seed: int) -> list[_Pixels]:
    """Return a sample of the images, and four mosaics of 2016 x 1536 pixels, large enough to be decoded smaller."""
    order = permutation(seed, Purpose.SUBSET, len(source))[:count]
    ranges = measure_ranges(source, max_image_px=10**9, seed=seed, known={}).ranges
    images = [np.asarray(decode(source.read(int(index)), max_image_px=10**9, ranges=ranges)) for index in order]
    tiles = [np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BOX)) for image in images]
    draws = generator(seed, Purpose.SUBSET)
    mosaics = [
        np.concatenate([np.concatenate([tiles[i] for i in draws.integers(len(tiles), size=42)], 1) for _ in range(32)])
        for _ in range(4)
    ]
    return [*images, *mosaics]


def pixel_parity(images: Sequence[_Pixels], *, device: torch.device, seed: int) -> list[PixelParity]:
    """Compare the compiled and the batched augmentation (the latter on `device`) with the reference on `images`."""
    rows = []
    for operation, recipe in _operations().items():
        pairs = []
        for number, image in enumerate(images):
            rng = generator(seed, Purpose.VIEW, number)
            pairs.append((image, draw_params(recipe, rng, height=image.shape[0], width=image.shape[1])))
        reference = [
            np.asarray(apply_params(Image.fromarray(image), params, size_px=VIEW_PX)) for image, params in pairs
        ]
        rows.append(_compare("cpu", operation, [_compiled_view(*pair) for pair in pairs], reference))
        if not operation.startswith("crop and resize"):  # the CPU crops in both cases
            batch = _batched_views(pairs, device)
            rows.append(_compare(f"batched on {device.type}", operation, batch, reference))
    return [*rows, *_odd_crops(images, seed), *_large_jpegs(images, seed)]


def _odd_crops(images: Sequence[_Pixels], seed: int) -> Iterator[PixelParity]:
    """Yield the difference on crops of any shape, tall ones above all: their order of directions depends on Pillow."""
    large = max(images, key=lambda image: min(image.shape[:2]))
    draws = generator(seed, Purpose.SUBSET)
    most = math.log(min(large.shape[:2]))
    for shape, bicubic in itertools.product(("tall", "wide"), (False, True)):
        pairs = list[tuple[_Pixels, ViewParams]]()
        while len(pairs) < ODD_CROPS:
            short, long = sorted(int(math.exp(most * draws.random())) for _ in range(2))
            height, width = (long, short) if shape == "tall" else (short, long)
            pairs.append((large, ViewParams(crop=(1, 2, height, width), bicubic=bicubic)))
        reference = [
            np.asarray(apply_params(Image.fromarray(image), params, size_px=VIEW_PX)) for image, params in pairs
        ]
        name = f"{shape} crops{', bicubic' if bicubic else ''}"
        yield _compare("cpu", name, [_compiled_view(*pair) for pair in pairs], reference)


def _compiled_view(image: _Pixels, params: ViewParams) -> _Pixels:
    view = np.empty((VIEW_PX, VIEW_PX, 3), np.uint8)
    apply_params_compiled(image, params, crop=params.crop, target=view)
    return view


def _batched_views(pairs: Sequence[tuple[_Pixels, ViewParams]], device: torch.device) -> list[_Pixels]:
    crops = [_compiled_view(image, params.crop_only()) for image, params in pairs]
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(device)  # (n, 3, S, S)
    params = pack_params([params for _, params in pairs]).to(device)
    return list(augment_batch(images, params).permute(0, 2, 3, 1).cpu().numpy())


def _compare(engine: str, operation: str, views: list[_Pixels], reference: list[_Pixels]) -> PixelParity:
    error = np.abs(np.stack(views).astype(int) - np.stack(reference))
    return PixelParity(
        engine=engine,
        operation=operation,
        num_views=len(views),
        max_error=int(error.max()),
        mean_error=float(error.mean()),
        allowed=0.0,
    )


def _operations() -> dict[str, Recipe]:
    """Return recipes of a crop with one more operation, and whole recipes."""
    crop_only = replace(AUG_PLUS, jitter_p=0.0, grayscale_p=0.0, blur_p=0.0, flip_p=0.0)
    zero_jitter = replace(crop_only, jitter_p=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    return {
        "crop and resize": crop_only,
        "crop and resize, bicubic": replace(crop_only, bicubic=True),
        "brightness": replace(zero_jitter, brightness=0.4),
        "contrast": replace(zero_jitter, contrast=0.4),
        "saturation": replace(zero_jitter, saturation=0.4),
        "hue": replace(zero_jitter, hue=0.4),
        "grayscale": replace(crop_only, grayscale_p=1.0),
        "blur": replace(crop_only, blur_p=1.0),
        "solarize": replace(crop_only, solarize_p=1.0),
        "flip": replace(crop_only, flip_p=1.0),
        "all of aug (v1)": AUG,
        "all of aug+ (v2)": AUG_PLUS,
        "all of MoCo v3's query": MOCO_V3_PAIR[0],
        "all of MoCo v3's key": MOCO_V3_PAIR[1],
        "all of SimCLR's": SIMCLR,
    }


def _large_jpegs(images: Sequence[_Pixels], seed: int) -> Iterator[PixelParity]:
    """Yield the difference that decoding a JPEG at a smaller size makes, for images that are large enough for it."""
    for size_px in (VIEW_PX, 224):
        fast = list[_Pixels]()
        reference = list[_Pixels]()
        for number, image in enumerate(images):
            if min(image.shape[:2]) < 6 * size_px:
                continue
            file = BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=90)

            def draw(height: int, width: int, number: int = number) -> list[ViewParams]:
                streams = (generator(seed, Purpose.VIEW, number, view) for view in (0, 1))
                return [draw_params(AUG_PLUS, rng, height=height, width=width) for rng in streams]

            for views, pipeline in ((fast, fast_views), (reference, reference_views)):
                target = np.empty((2, size_px, size_px, 3), np.uint8)
                pipeline(file.getvalue(), draw, target, max_image_px=10**9, crops_only=False)
                views += list(target)
        if fast:
            row = _compare("cpu", f"aug+ {size_px} px, large JPEG", fast, reference)
            yield replace(row, allowed=1.5)


def draw_parity(recipe: Recipe, *, num_draws: int, seed: int) -> list[DrawParity]:
    """Compare our draws of each parameter of `recipe` with torchvision's, for an image of 375 x 500 pixels."""
    ours: _Samples = {}
    for number in range(num_draws):
        _record(ours, draw_params(recipe, generator(seed, Purpose.VIEW, number), height=375, width=500))
    theirs = _torchvision_samples(recipe, num_draws, seed)
    return [
        DrawParity(
            parameter=name,
            statistic=_ks_statistic(np.array(values), np.array(theirs[name])),
        )
        for name, values in ours.items()
    ]


def _record(samples: _Samples, params: ViewParams) -> None:
    top, left, height, width = params.crop
    numbers = {
        "crop top": top,
        "crop left": left,
        "crop area": height * width,
        "crop ratio": width / height,
        "jitter": params.jitter is not None,
        "grayscale": params.grayscale,
        "blur": params.blur_radius_px is not None,
        "flip": params.flip,
        "solarize": params.solarize,
    }
    if params.jitter is not None:
        numbers |= {name: getattr(params.jitter, name) for name in ("brightness", "contrast", "saturation", "hue")}
        numbers |= {f"place of {op}": params.jitter.order.index(op) for op in range(4)}
    if params.blur_radius_px is not None:
        numbers["blur radius"] = params.blur_radius_px
    for name, number in numbers.items():
        samples.setdefault(name, []).append(float(number))


def _torchvision_samples(recipe: Recipe, num_draws: int, seed: int) -> _Samples:
    samples: _Samples = {}
    coin = random.Random(seed)
    jitter = T.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    shape = torch.empty(3, 375, 500, device="meta")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(num_draws):
            crop = T.RandomResizedCrop.get_params(shape, list(recipe.crop_scale), list(recipe.crop_ratio))
            order, *factors = T.ColorJitter.get_params(
                jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
            )
            names = ("brightness", "contrast", "saturation", "hue")
            drawn = Jitter(order=tuple(order.tolist()), **dict(zip(names, factors, strict=True)))
            params = ViewParams(crop=tuple(crop), jitter=drawn if coin.random() < recipe.jitter_p else None)
            blurs = coin.random() < recipe.blur_p
            others = replace(
                params,
                grayscale=coin.random() < recipe.grayscale_p,
                blur_radius_px=coin.uniform(*recipe.blur_radius_px) if blurs else None,
                flip=coin.random() < recipe.flip_p,
                solarize=coin.random() < recipe.solarize_p,
            )
            _record(samples, others)
    return samples


def _ks_statistic(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Return the largest distance between the two empirical distributions, times sqrt(n m / (n + m))."""
    values = np.sort(np.concatenate([ours, theirs]))
    below = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (ours, theirs)]
    scale = math.sqrt(len(ours) * len(theirs) / (len(ours) + len(theirs)))
    return float(np.abs(below[0] - below[1]).max() * scale)
