from overlap import merge, read_trace


def test_times_of_backward_and_summing_are_read_from_a_trace() -> None:
    node = "autograd::engine::evaluate_function: AddBackward0"
    summing = "gloo:all_reduce"
    spans = [
        *((node, 1_000.0, 2_000.0), (node, 5_000.0, 6_000.0)),
        *((summing, 4_000.0, 5_000.0), (summing, 4_500.0, 7_000.0), (summing, 8_000.0, 9_000.0)),
        ("aten::add", 0.0, 10_000.0),
    ]
    assert read_trace(spans) == {"backward_ms": 5.0, "summing_ms": 4.0, "both_ms": 2.0, "buckets": 3}


def test_merged_spans_cover_the_same_times_without_overlap() -> None:
    assert merge([(3, 4), (0, 2), (1, 2.5), (2.5, 3)]) == [(0, 4)]
    assert merge([]) == []
