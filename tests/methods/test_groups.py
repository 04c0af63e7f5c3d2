import pytest

from mocokit.methods.groups import GroupLayout


@pytest.mark.parametrize(("groups", "ranks"), [(8, 1), (8, 2), (8, 3), (8, 8), (5, 4)])
def test_each_row_is_computed_by_exactly_one_rank(groups: int, ranks: int) -> None:
    batch = groups * 6
    layouts = [GroupLayout(bn_groups=groups, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert [row for layout in layouts for row in layout.own_rows(batch)] == list(range(batch))
    counts = layouts[0].row_counts(batch)
    assert sum(counts) == batch
    assert max(counts) - min(counts) <= 6, "at most one group more than any other rank"


@pytest.mark.parametrize("micro_groups", [0, 1, 2, 3, 8, 100])
def test_micro_batches_cover_a_ranks_rows_in_order(micro_groups: int) -> None:
    layout = GroupLayout(bn_groups=8, rank=1, world_size=2, micro_groups=micro_groups)
    rows: list[int] = []
    for micro in layout.micro_batches(32):
        assert (micro.rows.stop - micro.rows.start) == 4 * micro.num_groups
        assert not micro.has_group_0
        rows += range(micro.rows.start, micro.rows.stop)
    assert rows == list(range(16))


def test_group_0_is_in_the_first_micro_batch_of_the_first_rank() -> None:
    first = [micro.has_group_0 for micro in GroupLayout(bn_groups=4, micro_groups=1).micro_batches(8)]
    assert first == [True, False, False, False]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"bn_groups": 0}, "bn_groups=0: must be at least 1"),
        ({"bn_groups": 3, "world_size": 4}, "bn_groups=3: fewer groups than the 4 ranks, which are no multiple"),
        ({"bn_groups": 2, "micro_groups": -1}, "micro_groups=-1"),
    ],
)
def test_impossible_layouts_name_the_setting(layout: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupLayout(**layout)


@pytest.mark.parametrize("batch", [9, 4])
def test_a_batch_must_split_into_groups_of_two_or_more(batch: int) -> None:
    with pytest.raises(ValueError, match=f"bn_groups=4: must divide data.global_batch_size={batch}"):
        GroupLayout(bn_groups=4).rows_per_group(batch)


@pytest.mark.parametrize(("groups", "ranks"), [(1, 2), (1, 4), (2, 4), (2, 8)])
def test_a_group_may_span_several_ranks(groups: int, ranks: int) -> None:
    layouts = [GroupLayout(bn_groups=groups, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert [row for layout in layouts for row in layout.own_rows(16)] == list(range(16))
    assert layouts[0].row_counts(16) == [16 // ranks] * ranks
    for rank, layout in enumerate(layouts):
        (micro,) = layout.micro_batches(16)
        assert (micro.rows, micro.num_groups) == (slice(0, 16 // ranks), 1)
        assert rank in micro.ranks
        assert len(micro.ranks) == layout.ranks_per_group == ranks // groups
        assert micro.has_group_0 == (rank < ranks // groups)
        assert layout.batch_size_of(16 // ranks) == 16


def test_a_group_that_does_not_split_over_its_ranks_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"groups of 10 images do not split over 4 ranks each; start fewer ranks"):
        GroupLayout(bn_groups=1, world_size=4).rows_per_group(10)
