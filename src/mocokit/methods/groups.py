"""The virtual world: which rows of the global batch form a BatchNorm group, and which rank computes them.

A run is defined by its global batch of B images and its G groups of N = B / G consecutive rows; the paper's is
8 groups of 32. Ranks and micro-batches only say who computes the groups, and how many at a time. Shuffling BN
(MoCo v1 sec. 3.3) is then a permutation of the B key views before they are grouped.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GroupLayout:
    """Assignment of G BatchNorm groups to R ranks.

    Args:
        bn_groups: G.
        rank: This rank.
        world_size: R; need not divide G, but may not exceed it.
        micro_groups: Groups that go through the network together; 0: all that this rank has.

    """

    bn_groups: int
    rank: int = 0
    world_size: int = 1
    micro_groups: int = 0

    def __post_init__(self) -> None:
        if self.bn_groups < 1:
            raise ValueError(f"method.bn_groups={self.bn_groups}: must be at least 1")
        if self.micro_groups < 0:
            raise ValueError(f"method.micro_groups={self.micro_groups}: must be 0 (all at once) or more")
        if self.bn_groups < self.world_size:
            raise ValueError(
                f"method.bn_groups={self.bn_groups}: fewer groups than the {self.world_size} ranks; "
                f"start at most {self.bn_groups} ranks or raise bn_groups (which changes the run)"
            )

    def rows_per_group(self, global_batch_size: int) -> int:
        """N = B / G; at least 2, since a group of one image has no statistics."""
        rows, rest = divmod(global_batch_size, self.bn_groups)
        if rest or rows < 2:
            raise ValueError(
                f"method.bn_groups={self.bn_groups}: must divide data.global_batch_size={global_batch_size} "
                "into groups of at least 2 images; change one of the two"
            )
        return rows

    def groups_of(self, rank: int) -> range:
        """Groups that `rank` computes: consecutive, at most one more than any other rank has."""
        edges = [number * self.bn_groups // self.world_size for number in (rank, rank + 1)]
        return range(*edges)

    def rows_of(self, rank: int, global_batch_size: int) -> range:
        """Rows of the global batch that `rank` computes."""
        groups, rows = self.groups_of(rank), self.rows_per_group(global_batch_size)
        return range(groups.start * rows, groups.stop * rows)

    def own_rows(self, global_batch_size: int) -> range:
        """Rows of the global batch that this rank computes."""
        return self.rows_of(self.rank, global_batch_size)

    def row_counts(self, global_batch_size: int) -> list[int]:
        """Rows that each rank computes."""
        return [len(self.rows_of(rank, global_batch_size)) for rank in range(self.world_size)]

    def micro_batches(self, global_batch_size: int) -> list["MicroBatch"]:
        """Own groups in the order and portions in which they go through the network."""
        groups, rows = self.groups_of(self.rank), self.rows_per_group(global_batch_size)
        step = self.micro_groups or len(groups)
        return [
            MicroBatch(
                rows=slice((first - groups.start) * rows, (min(first + step, groups.stop) - groups.start) * rows),
                num_groups=min(first + step, groups.stop) - first,
                has_group_0=first == 0,
            )
            for first in range(groups.start, groups.stop, step)
        ]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Some consecutive groups of one rank."""

    rows: slice
    """Among the rank's own rows."""
    num_groups: int
    has_group_0: bool
    """Whether its first group is the one whose BatchNorm statistics are kept."""
