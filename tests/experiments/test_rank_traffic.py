"""The bytes that experiments/rank_traffic.py counts."""

import torch
from rank_traffic import Traffic


def test_a_collective_counts_the_bytes_that_a_rank_gives() -> None:
    traffic = Traffic()
    called = list[str]()
    reduce = traffic.count("all_reduce", lambda *_: called.append("reduce"))
    gather = traffic.count("all_gather", lambda *_: called.append("gather"))
    barrier = traffic.count("barrier", lambda: called.append("barrier"))
    reduce(torch.zeros(3))
    reduce(torch.zeros(5), "SUM")
    gather([torch.zeros(2, 4, dtype=torch.uint8)] * 2, torch.zeros(2, 4, dtype=torch.uint8))
    barrier()
    traffic.end_step()
    reduce(torch.zeros(1, dtype=torch.int64))
    traffic.end_step()
    assert called == ["reduce", "reduce", "gather", "barrier", "reduce"]
    steps = [{name: size for name, size in step.items() if name != "wire of all ranks"} for step in traffic.steps]
    assert steps == [{"all_reduce float32": 32, "all_gather uint8": 8, "barrier": 0}, {"all_reduce int64": 8}]
