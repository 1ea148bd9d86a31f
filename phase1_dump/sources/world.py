"""Where this rank stands: its coordinate and its group along every parallel axis. Asks process groups, never ranks.

Reading a process group is local: nothing here communicates.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection
from torch import distributed, nn

from shardmerge.common.errors import BadInputError
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
    """The world of a model: its own process groups if it carries some, else megatron's global ones.

    Raises BadInputError if there is neither.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return World(0, 1, dict.fromkeys(AXES, 0), {axis: [0] for axis in AXES}, None)
    rank, own = distributed.get_rank(), getattr(model, "pg_collection", None)
    groups = {axis: _ranks(_group(name, own), name) for axis, name in AXES.items()}
    coordinates = {axis: members.index(rank) for axis, members in groups.items()}
    return World(rank, distributed.get_world_size(), coordinates, groups, _group("dp_cp", own))


def _group(name: str, own: Any) -> Any:
    found = getattr(own, name, None)
    if found is None:
        with contextlib.suppress(AssertionError):
            found = getattr(ProcessGroupCollection.use_mpu_process_groups([name]), name, None)
    return found


def _ranks(group: Any, name: str) -> list[int]:
    """Members of a group. A missing one must not pass for a group of this rank alone."""
    try:
        if group is not None:
            return list(distributed.get_process_group_ranks(group))
    except (KeyError, ValueError):
        pass  # it was destroyed together with the world it was made in
    raise BadInputError(
        f"torch.distributed is initialised, but the model has no {name} process group in it",
        "Call dump() while the groups stand that initialize_model_parallel() or the model's pg_collection made.",
    )
