from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mocokit.data.augment.batched import augment_batch, pack_params
from mocokit.data.augment.recipes import AUG, AUG_PLUS, Recipe, ViewParams, draw_params
from mocokit.data.decode.decode import DecodeError
from mocokit.data.pipelines import PIPELINES, Pipeline, decode_for_views, fast_views, reference_views
from mocokit.data.sources.sources import RawImage
from mocokit.randomness import Purpose, generator


def _photo(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 4, (height, width, 1))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def _file(image: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    image.save(file, kind)
    return file.getvalue()


def _views(
    pipeline: Pipeline,
    raw: RawImage,
    *,
    size_px: int = 32,
    seed: int = 0,
    recipe: Recipe = AUG_PLUS,
    crops_only: bool = False,
    max_image_px: int = 10**8,
) -> tuple[NDArray[np.uint8], list[ViewParams]]:
    def draw(height: int, width: int) -> list[ViewParams]:
        streams = (generator(seed, Purpose.VIEW, view) for view in (0, 1))
        return [draw_params(recipe, rng, height=height, width=width) for rng in streams]

    target = np.empty((2, size_px, size_px, 3), np.uint8)
    drawn = pipeline(raw, draw, target, max_image_px=max_image_px, crops_only=crops_only)
    return target, list(drawn)


def _stored_images() -> dict[str, RawImage]:
    photo = _photo(60, 80)
    return {
        "jpeg": _file(photo, "JPEG"),
        "gray jpeg": _file(photo.convert("L"), "JPEG"),
        "cmyk jpeg": _file(photo.convert("CMYK"), "JPEG"),
        "png": _file(photo, "PNG"),
        "transparent png": _file(photo.convert("RGBA"), "PNG"),
        "pixels": np.asarray(photo),
        "gray pixels": np.asarray(photo.convert("L")),
        "jpeg with bytes after its end": _file(photo, "JPEG") + b"more",
    }


@pytest.mark.parametrize("recipe", [AUG, AUG_PLUS], ids=["aug", "aug+"])
@pytest.mark.parametrize("kind", _stored_images())
def test_fast_views_equal_the_reference_views(kind: str, recipe: Recipe) -> None:
    raw = _stored_images()[kind]
    for seed in range(12):
        fast, reference = (_views(pipeline, raw, seed=seed, recipe=recipe) for pipeline in PIPELINES.values())
        np.testing.assert_array_equal(fast[0], reference[0])
        assert fast[1] == reference[1]


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_both_pipelines_refuse_the_same_files_with_the_same_words(damage: str) -> None:
    whole = _file(_photo(60, 80), "JPEG")
    raw = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no image"}[damage]
    messages = []
    for pipeline in PIPELINES.values():
        with pytest.raises(DecodeError) as error:
            _views(pipeline, raw)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_both_pipelines_refuse_a_decompression_bomb() -> None:
    for pipeline in PIPELINES.values():
        with pytest.raises(DecodeError, match=r"80x60 pixels, more than data.max_image_px=1000"):
            _views(pipeline, _file(_photo(60, 80), "JPEG"), max_image_px=1000)


@pytest.mark.parametrize("name", PIPELINES)
def test_crops_augmented_as_a_batch_equal_whole_views(name: str) -> None:
    raw = _file(_photo(90, 70), "JPEG")
    whole = [_views(PIPELINES[name], raw, seed=seed)[0][0] for seed in range(20)]
    cropped = [_views(PIPELINES[name], raw, seed=seed, crops_only=True) for seed in range(20)]
    crops = torch.from_numpy(np.stack([views[0] for views, _ in cropped])).permute(0, 3, 1, 2)  # (20, 3, S, S)
    finished = augment_batch(crops, pack_params([drawn[0] for _, drawn in cropped])).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(finished.numpy(), np.stack(whole))


def test_a_large_jpeg_decoded_small_gives_nearly_the_same_views() -> None:
    raw = _file(_photo(900, 1200), "JPEG")
    errors = []
    for seed in range(8):
        (fast, drawn), (reference, _) = (_views(pipeline, raw, seed=seed) for pipeline in PIPELINES.values())
        assert drawn == _views(reference_views, raw, seed=seed)[1]
        errors.append(np.abs(fast.astype(int) - reference).mean())
    assert 0 < np.mean(errors) < 1  # levels of 255; 0 would mean that it was not decoded small


@pytest.mark.parametrize(
    ("sizes_px", "num_decoded"), [((32,), 1), ((32, 8), 1), ((32, 32), 2), ((8, 32), 2), ((8, 8, 32, 32), 2)]
)
def test_a_jpeg_is_decoded_once_unless_a_later_target_needs_finer_pixels(
    sizes_px: tuple[int, ...], num_decoded: int
) -> None:
    """A crop of 480 px leaves 1.5 pixels per pixel of a 32 px view at 1/8 of the size; a crop of 120 px does at 1/2."""
    raw = _file(_photo(600, 600), "JPEG")
    sides = (480, *[120] * (len(sizes_px) - 1))
    still = draw_params(replace(AUG, jitter_p=0.0, grayscale_p=0.0), generator(0, Purpose.VIEW), height=600, width=600)
    drawn = [replace(still, crop=(10, 20, side, side)) for side in sides]
    targets = [np.empty((1, size_px, size_px, 3), np.uint8) for size_px in sizes_px]
    decoded, _ = decode_for_views(raw, lambda height, width: drawn, *targets, max_image_px=10**6)
    assert len({id(pixels) for pixels, _ in decoded}) == num_decoded
    assert [fraction for _, fraction in decoded][:1] == [8]
    fast_views(raw, lambda height, width: drawn, *targets, max_image_px=10**6, crops_only=False)
    for number, target in enumerate(targets):
        alone = np.empty_like(target)
        fast_views(raw, lambda h, w, n=number: drawn[n : n + 1], alone, max_image_px=10**6, crops_only=False)  # type: ignore[misc]
        assert np.abs(target.astype(int) - alone).mean() < 1.5


def test_a_jpeg_is_decoded_whole_when_a_crop_needs_its_pixels() -> None:
    raw = _file(_photo(120, 160), "JPEG")
    for seed in range(8):
        np.testing.assert_array_equal(
            _views(fast_views, raw, seed=seed, size_px=64)[0], _views(reference_views, raw, seed=seed, size_px=64)[0]
        )
