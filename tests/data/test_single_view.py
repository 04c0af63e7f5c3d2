from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mocokit.data.augment.recipes import CROP_AND_FLIP, apply_params, draw_params
from mocokit.data.decode.decode import decode
from mocokit.data.loading.loader import WholeEpochs, build_loader
from mocokit.data.single_view import SingleViews
from mocokit.data.sources.open_source import open_source
from mocokit.data.views import ImageReader
from mocokit.randomness import Purpose, generator


def _views(folder: Path, seed: int = 0) -> SingleViews:
    return SingleViews(ImageReader(open_source(folder), max_image_px=10**6, seed=0), size_px=24, seed=seed)


def test_a_view_equals_pillows_crop_and_flip_with_the_drawn_parameters(photos: Path) -> None:
    views = _views(photos)
    pixels, indices, _ = views.make_batch([(3, 7), (4, 7), (3, 60)], map)
    assert indices.tolist() == [7, 7, 60]
    for row, (epoch, index) in enumerate([(3, 7), (4, 7), (3, 60)]):
        image = decode(views.reader.source.read(index), max_image_px=10**6)
        params = draw_params(
            CROP_AND_FLIP, generator(0, Purpose.VIEW, epoch, index), height=image.height, width=image.width
        )
        assert params.jitter is None and not params.grayscale and params.blur_radius_px is None
        want = np.asarray(apply_params(image, params, size_px=24))
        assert np.array_equal(pixels[row].permute(1, 2, 0).numpy(), want)
    assert not torch.equal(pixels[0], pixels[1]), "another epoch, another crop"


def test_bad_images_are_left_out_not_replaced(own_photos: Path) -> None:
    views = _views(own_photos)
    Path(views.reader.source.name(2)).write_bytes(b"no image")
    Path(views.reader.source.name(4)).unlink()
    pixels, indices, bad = views.make_batch([(0, index) for index in range(6)], map)
    assert [image.index for image in bad] == [2, 4] and bad[0].reason == "not an image in a known format"
    assert indices.tolist() == [0, 1, 3, 5]
    assert torch.equal(pixels[2:3], views.make_batch([(0, 3)], map)[0])


def test_half_of_the_views_are_flipped(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    ramp = np.repeat(np.arange(0, 250, 5, dtype=np.uint8)[None, :, None], 50, 0).repeat(3, 2)
    Image.fromarray(ramp).save(tmp_path / "c" / "ramp.png")
    pixels, *_ = _views(tmp_path).make_batch([(epoch, 0) for epoch in range(1000)], map)
    flipped = int((pixels[:, 0, 0, 0] > pixels[:, 0, 0, -1]).sum())
    assert abs(flipped - 500) < 4 * 250**0.5


def test_each_epoch_contains_every_image_once_in_a_new_order() -> None:
    order = WholeEpochs(indices=(3, 5, 8, 13, 21, 34, 55), batch_size=3, epochs=2, seed=0)
    batches = list(order)
    assert len(batches) == len(order) == 4
    assert [len(batch) for batch in batches] == [3, 4, 3, 4], "a remainder of one image joins the batch before it"
    epochs = [[index for batch in batches[i : i + 2] for _, index in batch] for i in (0, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [3, 5, 8, 13, 21, 34, 55]
    assert epochs[0] != epochs[1]
    assert {epoch for epoch, _ in batches[3]} == {1}
    sizes = [[len(b) for b in WholeEpochs(indices=tuple(range(n)), batch_size=4, epochs=1, seed=0)] for n in (1, 4, 6)]
    assert sizes == [[1], [4], [4, 2]]


def test_the_number_of_workers_changes_no_pixel(photos: Path) -> None:
    order = WholeEpochs(indices=tuple(range(0, 80, 7)), batch_size=4, epochs=2, seed=1)
    batches = [list(build_loader(_views(photos), order, num_workers=workers, pin_memory=False)) for workers in (0, 2)]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
