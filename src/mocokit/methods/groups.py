"""The virtual world: the BatchNorm groups of a global batch, and the rank and micro-batch that compute each.

A run is defined by its global batch of B images and its G groups of N = B / G consecutive rows; the paper has 8 groups
of 32. Ranks and micro-batches only say who computes the groups and how many at a time, so the numbers do not depend on
them. Shuffling BN (MoCo v1 sec. 3.3) is a permutation of the B key views before they are grouped. With fewer groups
than ranks, a group spans R / G ranks, which add up its statistics: global BatchNorm, as in SimCLR and MoCo v3, is one
group.
"""

from dataclasses import dataclass

from mocokit.settings import require


@dataclass(frozen=True, kw_only=True)
class GroupLayout:
    """Assignment of G BatchNorm groups to R ranks.

    Args:
        bn_groups: G.
        rank: This rank.
        world_size: R: any number up to G, or a multiple of G.
        micro_groups: Groups that go through the network together; 0: all groups of this rank.

    """

    bn_groups: int
    rank: int = 0
    world_size: int = 1
    micro_groups: int = 0

    def __post_init__(self) -> None:
        require(self.bn_groups >= 1, "method.bn_groups", self.bn_groups, "must be at least 1")
        require(self.micro_groups >= 0, "method.micro_groups", self.micro_groups, "must be 0 (all at once) or more")
        require(
            self.world_size <= self.bn_groups or self.world_size % self.bn_groups == 0,
            "method.bn_groups",
            self.bn_groups,
            f"fewer groups than the {self.world_size} ranks, which are no multiple of it; start at most "
            f"{self.bn_groups} ranks or a multiple, or change bn_groups (which changes the run)",
        )

    @property
    def ranks_per_group(self) -> int:
        """Number of ranks that share a group; 1 unless there are fewer groups than ranks."""
        return max(1, self.world_size // self.bn_groups)

    def rows_per_group(self, global_batch_size: int) -> int:
        """Return N = B / G, at least 2, since one image has no variance."""
        rows, rest = divmod(global_batch_size, self.bn_groups)
        require(
            rest == 0 and rows >= 2,
            "method.bn_groups",
            self.bn_groups,
            f"must divide data.global_batch_size={global_batch_size} into groups of at least 2 images; change one of "
            "the two",
        )
        require(
            rows % self.ranks_per_group == 0,
            "data.global_batch_size",
            global_batch_size,
            f"its BatchNorm groups of {rows} images do not split over {self.ranks_per_group} ranks each; start fewer "
            "ranks or change the batch",
        )
        return rows

    def batch_size_of(self, num_own_rows: int) -> int:
        """Return B of the batch of which this rank computes `num_own_rows` rows."""
        if self.ranks_per_group > 1:
            return num_own_rows * self.world_size
        return num_own_rows // len(self.groups_of(self.rank)) * self.bn_groups

    def groups_of(self, rank: int) -> range:
        """Return the consecutive groups that `rank` computes, wholly or in part; ranks differ by one group at most."""
        if self.ranks_per_group > 1:
            group = rank // self.ranks_per_group
            return range(group, group + 1)
        return range(rank * self.bn_groups // self.world_size, (rank + 1) * self.bn_groups // self.world_size)

    def rows_of(self, rank: int, global_batch_size: int) -> range:
        """Return the rows of the global batch that `rank` computes."""
        rows = self.rows_per_group(global_batch_size)
        if self.ranks_per_group > 1:
            part = rows // self.ranks_per_group
            return range(rank * part, (rank + 1) * part)
        groups = self.groups_of(rank)
        return range(groups.start * rows, groups.stop * rows)

    def own_rows(self, global_batch_size: int) -> range:
        """Return the rows of the global batch that this rank computes."""
        return self.rows_of(self.rank, global_batch_size)

    def row_counts(self, global_batch_size: int) -> list[int]:
        """Return how many rows each rank computes."""
        return [len(self.rows_of(rank, global_batch_size)) for rank in range(self.world_size)]

    def batch_rows(self, micro: "MicroBatch", global_batch_size: int) -> slice:
        """Return the rows of the global batch that form one of this rank's micro-batches."""
        first = self.own_rows(global_batch_size).start
        return slice(first + micro.rows.start, first + micro.rows.stop)

    def micro_batches_of(self, num_own_rows: int) -> list["MicroBatch"]:
        """Return the micro-batches of this rank, which holds `num_own_rows` rows of the global batch."""
        return self.micro_batches(self.batch_size_of(num_own_rows))

    def micro_batches(self, global_batch_size: int) -> list["MicroBatch"]:
        """Return this rank's micro-batches: its groups in order, `micro_groups` at a time."""
        groups = self.groups_of(self.rank)
        rows = self.rows_per_group(global_batch_size)
        if self.ranks_per_group > 1:  # a part of one group
            first_rank = groups.start * self.ranks_per_group
            return [
                MicroBatch(
                    rows=slice(0, rows // self.ranks_per_group),
                    num_groups=1,
                    has_group_0=groups.start == 0,
                    ranks=range(first_rank, first_rank + self.ranks_per_group),
                )
            ]
        micro_batches = []
        size = self.micro_groups or len(groups)
        for start in range(groups.start, groups.stop, size):
            stop = min(start + size, groups.stop)
            micro_batches.append(
                MicroBatch(
                    rows=slice((start - groups.start) * rows, (stop - groups.start) * rows),
                    num_groups=stop - start,
                    has_group_0=start == 0,
                    ranks=range(self.rank, self.rank + 1),
                )
            )
        return micro_batches


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Consecutive BatchNorm groups of one rank that go through the network together."""

    rows: slice
    """Its rows among the rank's own n rows."""
    num_groups: int
    has_group_0: bool
    """True if it holds the group whose BatchNorm statistics are kept as running statistics."""
    ranks: range
    """Ranks that share its group; this one alone unless a group spans several."""
