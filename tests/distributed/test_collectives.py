from pathlib import Path

import pytest

from mocokit.distributed import collectives as distributed
from tests.run_process import finish, start

EXCHANGE = """
import sys
import torch
from mocokit.distributed import collectives as distributed

with distributed.session("cpu"):
    assert distributed.from_main(lambda: [distributed.rank(), "measured"]) == [0, "measured"]
    counts = [5, 1, 6]
    batch = torch.arange(12 * 8).view(12, 2, 2, 2)
    first = sum(counts[: distributed.rank()])
    own = slice(first, first + counts[distributed.rank()])
    for dtype in (torch.uint8, torch.float64):
        for seed in range(5):
            order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
            rows = batch[own].to(dtype=dtype, memory_format=torch.channels_last)
            got = distributed.permute_rows(rows, counts, order)
            assert torch.equal(got, batch.to(dtype)[order][own]), (seed, got)
            assert torch.equal(rows, batch[own].to(dtype)), "the input is unchanged"
"""


@pytest.mark.dist
def test_each_rank_gets_its_rows_of_the_permuted_batch_and_the_main_ranks_values(tmp_path: Path) -> None:
    _run(EXCHANGE, tmp_path, ranks=3)


SUMS = """
import torch
from torch import nn
from mocokit.distributed import collectives as distributed
from mocokit.distributed.gradients import BucketedGradientSum

torch.manual_seed(0)
network = nn.Sequential(*(nn.Linear(300, 300) for _ in range(8)))  # 2.9 MB: more than one bucket
network[0].weight.requires_grad_(False)
inputs = torch.randn(4, 3, 5, 300)  # (ranks, micro-batches, N, C)
counts = [3, 1, 2, 3]

def loss(rank, number):
    return network(inputs[rank, number]).square().mean(), None

def gradients():
    found = torch.cat([p.grad.flatten() for p in network.parameters() if p.requires_grad])
    network.zero_grad(set_to_none=True)
    return found

for rank in range(4):
    for number in range(counts[rank]):
        loss(rank, number)[0].backward()
wanted, steps = gradients(), []
with distributed.session("cpu"):
    gradient_sum = BucketedGradientSum(network.parameters())
    for _ in range(4):
        rank = distributed.rank()
        for number in range(counts[rank]):
            is_last = number == counts[rank] - 1
            gradient_sum.backward(gradient_sum.forward(loss, rank, number, is_last=is_last)[0])
        steps.append(gradients())
    torch.testing.assert_close(steps[0], wanted, rtol=1e-4, atol=1e-8)
    assert all(torch.equal(steps[0], step) for step in steps), "a step adds up as the first one does"
"""


@pytest.mark.dist
def test_gradients_are_the_sum_over_ranks_and_micro_batches_always_in_one_order(tmp_path: Path) -> None:
    output = _run(SUMS, tmp_path, ranks=4)
    assert "Warning" not in output, output


def _run(source: str, work: Path, *, ranks: int) -> str:
    """Run `source` on each rank and return what they print; fails if one fails."""
    script = work / "ranks.py"
    script.write_text(source, encoding="utf-8")
    code, output = finish(start([], ranks=ranks, program=(str(script),)))
    assert code == 0, output
    return output


def test_only_an_error_of_the_network_is_blamed_on_another_rank() -> None:
    lost = "[/gloo/transport/tcp/pair.cc:545] Read error [10.0.0.2]:26340: Connection reset by peer. GLHF!"
    with (
        pytest.raises(ConnectionError, match=r"machine is gone \(Read error .*reset by peer\)"),
        distributed.together(),
    ):
        raise RuntimeError(lost)
    with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator"), distributed.together():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
