"""The virtual world: which rows of the global batch form a BatchNorm group, and which rank computes them.

A run is defined by its global batch of B images and its G groups of N = B / G consecutive rows; the paper's is
8 groups of 32. Ranks and micro-batches only say who computes the groups, and how many at a time. Shuffling BN
(MoCo v1 sec. 3.3) is then a permutation of the B key views before they are grouped. With fewer groups than ranks, a
group spans R / G ranks, which add up its statistics: global BatchNorm, as in SimCLR and MoCo v3, is one group.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GroupLayout:
    """Assignment of G BatchNorm groups to R ranks.

    Args:
        bn_groups: G.
        rank: This rank.
        world_size: R; up to G any number, beyond it a multiple of G.
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
        if self.bn_groups < self.world_size and self.world_size % self.bn_groups:
            raise ValueError(
                f"method.bn_groups={self.bn_groups}: fewer groups than the {self.world_size} ranks, which are no "
                f"multiple of it; start at most {self.bn_groups} ranks or a multiple, or change bn_groups (which "
                "changes the run)"
            )

    @property
    def ranks_per_group(self) -> int:
        """Ranks that a group spans; 1 unless there are fewer groups than ranks."""
        return max(1, self.world_size // self.bn_groups)

    def rows_per_group(self, global_batch_size: int) -> int:
        """N = B / G; at least 2, since a group of one image has no statistics."""
        rows, rest = divmod(global_batch_size, self.bn_groups)
        if rest or rows < 2:
            raise ValueError(
                f"method.bn_groups={self.bn_groups}: must divide data.global_batch_size={global_batch_size} "
                "into groups of at least 2 images; change one of the two"
            )
        if rows % self.ranks_per_group:
            raise ValueError(
                f"data.global_batch_size={global_batch_size}: its BatchNorm groups of {rows} images do not split over "
                f"{self.ranks_per_group} ranks each; start fewer ranks or change the batch"
            )
        return rows

    def batch_size_of(self, num_own_rows: int) -> int:
        """B, of which this rank computes `num_own_rows`."""
        if self.ranks_per_group > 1:
            return num_own_rows * self.world_size
        return num_own_rows // len(self.groups_of(self.rank)) * self.bn_groups

    def groups_of(self, rank: int) -> range:
        """Groups that `rank` computes, or has a part in: consecutive, at most one more than any other rank has."""
        if self.ranks_per_group > 1:
            group = rank // self.ranks_per_group
            return range(group, group + 1)
        edges = [number * self.bn_groups // self.world_size for number in (rank, rank + 1)]
        return range(*edges)

    def rows_of(self, rank: int, global_batch_size: int) -> range:
        """Rows of the global batch that `rank` computes."""
        groups = self.groups_of(rank)
        rows = self.rows_per_group(global_batch_size)
        if self.ranks_per_group > 1:
            part = rows // self.ranks_per_group
            return range(rank * part, (rank + 1) * part)
        return range(groups.start * rows, groups.stop * rows)

    def own_rows(self, global_batch_size: int) -> range:
        """Rows of the global batch that this rank computes."""
        return self.rows_of(self.rank, global_batch_size)

    def row_counts(self, global_batch_size: int) -> list[int]:
        """Rows that each rank computes."""
        return [len(self.rows_of(rank, global_batch_size)) for rank in range(self.world_size)]

    def micro_batches_of(self, num_own_rows: int) -> list["MicroBatch"]:
        """`micro_batches` of the batch of which this rank computes `num_own_rows`."""
        return self.micro_batches(self.batch_size_of(num_own_rows))

    def micro_batches(self, global_batch_size: int) -> list["MicroBatch"]:
        """Own groups in the order and portions in which they go through the network."""
        groups = self.groups_of(self.rank)
        rows = self.rows_per_group(global_batch_size)
        if self.ranks_per_group > 1:
            first = groups.start * self.ranks_per_group
            part = MicroBatch(
                rows=slice(0, rows // self.ranks_per_group),
                num_groups=1,
                has_group_0=groups.start == 0,
                ranks=range(first, first + self.ranks_per_group),
            )
            return [part]
        step = self.micro_groups or len(groups)
        return [
            MicroBatch(
                rows=slice((first - groups.start) * rows, (min(first + step, groups.stop) - groups.start) * rows),
                num_groups=min(first + step, groups.stop) - first,
                has_group_0=first == 0,
                ranks=range(self.rank, self.rank + 1),
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
    ranks: range
    """Ranks that share its group; this one alone unless a group spans several."""
