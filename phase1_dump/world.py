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

    def replicas(self, *, routed_expert: bool, cut: bool, copies: int = 1) -> tuple[int, ...]:
        """Return the global ranks, ascending, that hold the same rectangle. This rank is one of them.

        Experts repeat along expert-data-parallel ranks, everything else along data and context parallel ones; what
        no tensor-parallel cut touches repeats along that axis too.

        Args:
            routed_expert: Whether it is of a routed expert.
            cut: Whether tensor parallelism cuts it.
            copies: How many neighbours along that axis hold the same part: more than one where there are fewer parts
                than ranks, as of keys that have fewer heads.

        Returns:
            Global ranks.
        """
        axis = "etp" if routed_expert else "tp"
        groups = [self.groups[name] for name in (["edp"] if routed_expert else ["dp", "cp"])]
        if not cut:
            groups.append(self.groups[axis])
        elif copies > 1:
            first = self.coordinates[axis] // copies * copies
            groups.append(self.groups[axis][first : first + copies])
        return replica_group(self.rank, *groups)

    def copies(self, part: int, parts: int, *, routed_expert: bool) -> int | None:
        """Return how many neighbours along the tensor-parallel axis hold the same part of a tensor.

        Args:
            part: Which part this rank holds, counted from 0.
            parts: How many there are.
            routed_expert: Whether it is of a routed expert.

        Returns:
            The number; None if it is not neighbours that hold the same part.
        """
        axis = "etp" if routed_expert else "tp"
        size = len(self.groups[axis])
        copies = size // parts if size % parts == 0 else 1
        return copies if copies == 1 or self.coordinates[axis] // copies == part else None


def replica_group(rank: int, *groups: Sequence[int]) -> tuple[int, ...]:
    """Return the global ranks that differ from `rank` only along the axes of `groups`.

    Each group holds the global ranks along one axis through `rank`. Megatron lays its ranks out as a grid
    (megatron/core/parallel_state.py, `RankGenerator`), so steps along two axes add up.
    """
    members = {rank}
    for group in groups:
        members = {member + step - rank for member in members for step in group}
    return tuple(sorted(members))
