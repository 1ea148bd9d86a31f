"""Where a rank stands among all ranks: its coordinate and its group along every parallel axis.

Holds plain numbers and must not know where they come from: `sources/process_groups.py` reads them off a live model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class World:
    """The place of one rank. Axes are tp, cp, pp and dp; of routed experts ep, etp and edp.

    `groups` hold the global ranks along an axis through this rank, ordered by the coordinate on that axis.
    """

    rank: int
    size: int
    coordinates: dict[str, int]
    groups: dict[str, list[int]]

    def replicas(self, *, routed_expert: bool, cut: bool) -> tuple[int, ...]:
        """Return the global ranks, ascending, that hold the same rectangle. This rank is one of them.

        Experts repeat along expert-data-parallel ranks, everything else along data and context parallel ones; what
        no tensor-parallel cut touches repeats along that axis too.
        """
        axes = ["edp"] if routed_expert else ["dp", "cp"]
        if not cut:
            axes.append("etp" if routed_expert else "tp")
        return replica_group(self.rank, *(self.groups[axis] for axis in axes))


def replica_group(rank: int, *groups: Sequence[int]) -> tuple[int, ...]:
    """Return the global ranks that differ from `rank` only along the axes of `groups`.

    Each group holds the global ranks along one axis through `rank`. Megatron lays its ranks out as a grid
    (megatron/core/parallel_state.py, `RankGenerator`), so steps along two axes add up.
    """
    members = {rank}
    for group in groups:
        members = {member + step - rank for member in members for step in group}
    return tuple(sorted(members))
