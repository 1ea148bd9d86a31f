"""Where this rank stands: its coordinate and its group along every parallel axis. Asks process groups, never ranks.

Reading a process group is local: nothing here communicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection
from torch import distributed, nn

from shardmerge.common.ownership import replica_group

# our axis -> attribute of megatron-core's ProcessGroupCollection
AXES = {"tp": "tp", "cp": "cp", "pp": "pp", "dp": "dp", "ep": "ep", "etp": "expt_tp", "edp": "expt_dp"}


@dataclass(frozen=True, slots=True)
class World:
    """`groups` hold global ranks along an axis through this rank, ordered by the coordinate on that axis."""

    rank: int
    size: int
    coordinates: dict[str, int]
    groups: dict[str, list[int]]
    dp_cp_group: Any

    def replicas(self, *, routed_expert: bool, cut: bool) -> tuple[int, ...]:
        """Global ranks that hold the same rectangle.

        Experts repeat along expert-data-parallel ranks, everything else along data and context parallel ones; what
        no tensor-parallel cut touches repeats along that axis too.
        """
        axes = ["edp"] if routed_expert else ["dp", "cp"]
        if not cut:
            axes.append("etp" if routed_expert else "tp")
        return replica_group(self.rank, *(self.groups[axis] for axis in axes))


def world_of(model: nn.Module) -> World:
    """The world of a model: its own process groups if it carries some, else megatron's global ones."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return World(0, 1, dict.fromkeys(AXES, 0), {axis: [0] for axis in AXES}, None)
    rank, fallback = distributed.get_rank(), ProcessGroupCollection.use_mpu_process_groups()
    own = getattr(model, "pg_collection", None)
    groups = {axis: _ranks(_group(name, own, fallback), rank) for axis, name in AXES.items()}
    coordinates = {axis: members.index(rank) for axis, members in groups.items()}
    dp_cp = _group("dp_cp", own, fallback)
    return World(rank, distributed.get_world_size(), coordinates, groups, dp_cp)


def _group(name: str, *collections: Any) -> Any:
    found = (getattr(collection, name, None) for collection in collections)
    return next((group for group in found if group is not None), None)


def _ranks(group: Any, rank: int) -> list[int]:
    return [rank] if group is None else list(distributed.get_process_group_ranks(group))
