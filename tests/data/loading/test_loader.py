from pathlib import Path

import numpy as np
import pytest
import torch

from mocokit.data.augment.recipes import AUG_PLUS
from mocokit.data.batch import ViewBatch
from mocokit.data.decode.decode import decode
from mocokit.data.loading.loader import BatchOrder, build_loader, own_cores, steps_per_epoch
from mocokit.data.sources.open_source import open_source
from mocokit.data.statistics import measure_mean_std
from mocokit.data.views import ImageReader, TwoViews


def _order(start: int = 0, rows: range = range(8), total: int = 20, seed: int = 3) -> list[list[tuple[int, int]]]:
    return list(
        BatchOrder(num_images=50, global_batch_size=8, own_rows=rows, start_step=start, total_steps=total, seed=seed)
    )


def test_each_epoch_sees_each_image_at_most_once_and_in_a_new_order() -> None:
    steps = _order()
    epochs = [[index for step in steps[first : first + 6] for _, index in step] for first in (0, 6, 12)]
    for number, epoch in enumerate(epochs):
        assert len(set(epoch)) == 48
        assert {e for step in steps[6 * number : 6 * number + 6] for e, _ in step} == {number}
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 13, 20])
def test_starting_at_any_step_gives_the_batches_from_there(start: int) -> None:
    assert _order(start) == _order()[start:]


def test_ranks_share_each_batch_without_overlap() -> None:
    whole = _order()
    parts = [_order(rows=range(0, 2)), _order(rows=range(2, 7)), _order(rows=range(7, 8))]
    assert [a + b + c for a, b, c in zip(*parts, strict=True)] == whole


def test_another_seed_is_another_order() -> None:
    assert _order(seed=3) != _order(seed=4)


def test_a_batch_larger_than_the_data_is_an_error() -> None:
    with pytest.raises(ValueError, match="global_batch_size=64: larger than the data set of 50 images; use at most 50"):
        steps_per_epoch(50, 64)


def _views(photos: Path) -> TwoViews:
    reader = ImageReader(open_source(photos), max_image_px=10**6, seed=0)
    return TwoViews(reader, AUG_PLUS, size_px=24, seed=0, pipeline="fast")


def _batches(photos: Path, workers: int, rows: range = range(10), threads: int = 1) -> list[ViewBatch]:
    order = BatchOrder(num_images=80, global_batch_size=10, own_rows=rows, start_step=0, total_steps=10, seed=0)
    return list(build_loader(_views(photos), order, num_workers=workers, num_threads=threads))


def test_worker_thread_and_rank_counts_change_no_pixel(photos: Path) -> None:
    alone = _batches(photos, 0)
    half = _batches(photos, 0, range(5, 10))
    workers = _batches(photos, 2)
    threads = _batches(photos, 0, threads=3)
    for a, b, t, c in zip(alone, workers, threads, half, strict=True):
        assert torch.equal(a.query, b.query)
        assert torch.equal(a.key, b.key)
        assert torch.equal(a.image_ids, b.image_ids)
        assert torch.equal(a.query, t.query)
        assert torch.equal(a.key, t.key)
        assert torch.equal(a.image_ids, t.image_ids)
        assert torch.equal(a.query[5:], c.query)
        assert torch.equal(a.key[5:], c.key)


def test_query_key_epochs_and_images_are_drawn_independently(photos: Path) -> None:
    views = _views(photos)
    batch = views.make_batch([(0, 4), (1, 4), (0, 5), (0, 4)], map)
    assert batch.query.shape == (4, 3, 24, 24)
    assert batch.query.dtype == torch.uint8
    assert not torch.equal(batch.query[0], batch.key[0])
    assert not torch.equal(batch.query[0], batch.query[1]), "another epoch, another view"
    assert torch.equal(batch.query[0], batch.query[3]), "the same coordinates, the same view"


def test_a_bad_image_is_replaced_by_another_and_named(own_photos: Path) -> None:
    source = open_source(own_photos)
    Path(source.name(7)).write_bytes(b"")
    Path(source.name(8)).write_bytes(Path(source.name(8)).read_bytes()[:200])
    Path(source.name(9)).unlink()
    reader = ImageReader(source, max_image_px=10**6, seed=0)
    views = TwoViews(reader, AUG_PLUS, size_px=24, seed=0, pipeline="fast")
    batch = views.make_batch([(0, 6), (0, 7), (0, 8), (0, 9)], map)
    assert [(bad.index, bad.name) for bad in batch.bad] == [(i, source.name(i)) for i in (7, 8, 9)]
    assert batch.bad[0].reason == "empty file"
    assert "No such file" in batch.bad[2].reason
    assert not {7, 8, 9} & set(batch.image_ids.tolist())
    assert batch.image_ids[0] == 6
    assert batch.query.float().std() > 1


def test_a_data_set_of_bad_images_ends_with_a_message(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    reader = ImageReader(open_source(tmp_path), max_image_px=10**6, seed=0)
    with pytest.raises(ValueError, match=r"100 images in a row can't be used.*not an image in a known format"):
        reader.use_or_replace(0, 0, lambda raw, _index: decode(raw, max_image_px=10**6))
    with pytest.raises(ValueError, match="none of 3 images can be read"):
        measure_mean_std(reader, size_px=32, seed=0)


def test_mean_and_std_are_those_of_the_pixels(photos: Path) -> None:
    reader = ImageReader(open_source(photos), max_image_px=10**6, seed=0)
    pixels = np.stack([np.asarray(reader.read(i), float) for i in range(80)]).reshape(-1, 3) / 255
    mean, std = measure_mean_std(reader, size_px=48, seed=0)
    assert mean == pytest.approx(pixels.mean(axis=0), abs=1e-4)
    assert std == pytest.approx(pixels.std(axis=0), abs=1e-4)


def test_a_rank_that_got_its_own_cores_does_not_share_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 ranks of a machine with 64 cores: unpinned they see all 64, pinned 8 each."""
    sets = {"own": set(range(64)), "launcher": set(range(64))}
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: sets["launcher" if pid else "own"], raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert own_cores() == 8
    sets["own"] = set(range(8, 16))
    assert own_cores() == 8, "not 1"
    sets["launcher"] = sets["own"] = set(range(16))  # a job that has 16 cores of the machine
    assert own_cores() == 2
