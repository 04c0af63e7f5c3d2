"""Everything that ranks do together: collectives, gradient sums, FSDP2, and a watchdog that finds hung ranks.

The only room that imports torch.distributed; it imports no other room. Every function also works in a single process
without a process group.
"""

from mocokit.distributed.collectives import (
    ALONE_TIMEOUT_S,
    RANK_TIMEOUT_S,
    all_gather_objects,
    all_gather_rows,
    any_rank,
    barrier,
    from_main,
    gather_rows_on_main,
    is_main,
    local_rank,
    max_over_ranks,
    on_every_rank,
    on_main,
    permute_rows,
    rank,
    rows_from_main,
    session,
    started_as_main,
    sum_over_ranks,
    together,
    work_alone,
    world_size,
)
from mocokit.distributed.machines import from_first_of_machine

__all__ = [
    "ALONE_TIMEOUT_S",
    "RANK_TIMEOUT_S",
    "all_gather_objects",
    "all_gather_rows",
    "any_rank",
    "barrier",
    "from_first_of_machine",
    "from_main",
    "gather_rows_on_main",
    "is_main",
    "local_rank",
    "max_over_ranks",
    "on_every_rank",
    "on_main",
    "permute_rows",
    "rank",
    "rows_from_main",
    "session",
    "started_as_main",
    "sum_over_ranks",
    "together",
    "work_alone",
    "world_size",
]
