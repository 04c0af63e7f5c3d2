from pathlib import Path

import pytest

from tests.run_process import finish, start

EXCHANGE = """
import sys
import torch
from mocokit import distributed

with distributed.session("cpu"):
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
            assert torch.equal(rows, batch[own].to(dtype)), "what was held stays"
"""


@pytest.mark.dist
def test_each_rank_gets_its_rows_of_the_permuted_batch(tmp_path: Path) -> None:
    script = tmp_path / "exchange.py"
    script.write_text(EXCHANGE, encoding="utf-8")
    code, output = finish(start([], ranks=3, program=(str(script),)))
    assert code == 0, output
