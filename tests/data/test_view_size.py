import pytest

from mocokit.data.view_size import ViewSize


def test_views_grow_evenly_in_multiples_of_8_to_the_last_size() -> None:
    size = ViewSize(first_px=96, last_px=224, epochs=10)
    sides = [size.in_epoch(epoch) for epoch in range(12)]
    assert sides == [96, 104, 120, 128, 144, 160, 168, 184, 192, 208, 224, 224]


@pytest.mark.parametrize("epochs", [0, 4])
def test_a_size_that_does_not_grow_is_the_same_in_each_epoch(epochs: int) -> None:
    size = ViewSize(first_px=33, last_px=33, epochs=epochs)
    assert {size.in_epoch(epoch) for epoch in range(6)} == {33}
