import pytest
import torch
from torch import nn

from mocokit.nets.patches import CombinedPatches, cut, require_patches


def test_the_patches_of_an_image_are_consecutive_row_by_row() -> None:
    images = torch.rand(2, 3, 12, 12)
    patches = cut(images, 3)
    assert patches.shape == (18, 3, 4, 4)
    for number in range(18):
        image = number // 9
        (y, x) = divmod(number % 9, 3)
        assert torch.equal(patches[number], images[image, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4])


def test_cutting_keeps_the_memory_format() -> None:
    images = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert cut(images, 2).is_contiguous(memory_format=torch.channels_last)


def test_features_are_means_over_each_pair_of_patches() -> None:
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    features = CombinedPatches(2, 2)(nn.Flatten(), images)
    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
    flat = [[image[:, y : y + 4, x : x + 4].reshape(-1) for y, x in corners] for image in images]
    wanted = [(of[a] + of[b]) / 2 for of in flat for a in range(4) for b in range(a + 1, 4)]
    assert features.shape == (12, 48)
    torch.testing.assert_close(features, torch.stack(wanted), rtol=1e-12, atol=0)


def test_all_patches_combined_make_one_query() -> None:
    assert len(CombinedPatches(2, 4).combinations) == 1


@pytest.mark.parametrize(
    ("grid", "combined", "size_px", "says"),
    [
        (3, 2, 32, "method.patch_grid=3: does not divide data.image_size=32"),
        (2, 5, 32, "method.patches_combined=5: must be 1 to 4"),
        (4, 3, 32, "method.patch_grid=4: makes 560 queries of a view"),
    ],
)
def test_patches_that_do_not_fit_are_refused(grid: int, combined: int, size_px: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        require_patches(grid, combined, size_px)
