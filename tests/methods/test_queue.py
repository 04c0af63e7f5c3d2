import pytest
import torch

from mocokit.methods.queue import KeyQueue


def _rows(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(first, first + count)
    return ids[:, None].float().expand(count, 3), ids


def test_the_queue_starts_with_unit_rows_of_no_image() -> None:
    queue = KeyQueue(50, 8, seed=1)
    assert torch.allclose(queue.negatives.norm(dim=1), torch.ones(50))
    assert queue.image_ids.eq(-1).all()
    assert queue.fill == 0.0
    assert not torch.equal(queue.keys, KeyQueue(50, 8, seed=2).keys)


@pytest.mark.parametrize("batches", [[4, 4, 4], [7, 7, 7], [10, 10], [3, 10, 1, 9], [1] * 25])
def test_any_batch_wraps_around_and_the_newest_k_keys_remain(batches: list[int]) -> None:
    queue = KeyQueue(10, 3, seed=0)
    first = 0
    for count in batches:
        queue.enqueue(*_rows(first, count))
        first += count
    assert sorted(queue.image_ids.tolist()) == ([-1] * (10 - first) if first < 10 else []) + list(
        range(max(0, first - 10), first)
    )
    assert queue.pointer == first % 10
    real = queue.image_ids >= 0
    assert torch.equal(queue.keys[real, 0], queue.image_ids[real].float()), "each id stays beside its key"


def test_the_oldest_slot_is_overwritten_next() -> None:
    queue = KeyQueue(4, 3, seed=0)
    queue.enqueue(*_rows(0, 4))
    queue.enqueue(*_rows(4, 1))
    assert queue.image_ids.tolist() == [4, 1, 2, 3]


def test_more_keys_than_slots_is_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"queue_size=4: smaller than the 5 keys"):
        KeyQueue(4, 3, seed=0).enqueue(*_rows(0, 5))


def test_queue_and_pointer_survive_the_state_dict() -> None:
    queue = KeyQueue(10, 3, seed=0)
    other = KeyQueue(10, 3, seed=1)
    queue.enqueue(*_rows(0, 7))
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.keys, queue.keys)
    assert torch.equal(other.image_ids, queue.image_ids)
    assert other.pointer == 7
