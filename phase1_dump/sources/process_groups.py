"""Reads the place of a live model's rank off its process groups.

No rank arithmetic is done here. Reading a process group is local: nothing here communicates.
"""

from __future__ import annotations

import contextlib
from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection
from torch import distributed, nn

from shardmerge.common.errors import BadInputError

from ..world import World

# our axis -> attribute of megatron-core's ProcessGroupCollection
GROUPS = {"tp": "tp", "cp": "cp", "pp": "pp", "dp": "dp", "ep": "ep", "etp": "expt_tp", "edp": "expt_dp"}


def world_of(model: nn.Module) -> World:
    """Return the world of a model: its own process groups if it carries some, else megatron's global ones.

    Raises BadInputError if there is neither.
    """
    if not _is_initialized():
        return World(0, 1, dict.fromkeys(GROUPS, 0), {axis: [0] for axis in GROUPS})
    rank = distributed.get_rank()
    groups = {axis: _ranks(_group(name, model), name) for axis, name in GROUPS.items()}
    coordinates = {axis: members.index(rank) for axis, members in groups.items()}
    return World(rank, distributed.get_world_size(), coordinates, groups)


def dp_cp_group(model: nn.Module) -> Any:
    """Return the data and context parallel group of a model, which `sharded_state_dict` needs, or None."""
    return _group("dp_cp", model) if _is_initialized() else None


def _is_initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _group(name: str, model: nn.Module) -> Any:
    group = getattr(getattr(model, "pg_collection", None), name, None)
    if group is None:
        with contextlib.suppress(AssertionError):
            group = getattr(ProcessGroupCollection.use_mpu_process_groups([name]), name, None)
    return group


def _ranks(group: Any, name: str) -> list[int]:
    """Return the members of a group. A missing group must not pass for one of this rank alone."""
    try:
        if group is not None:
            return list(distributed.get_process_group_ranks(group))
    except (KeyError, ValueError):
        pass  # it was destroyed together with the world it was made in
    raise BadInputError(
        f"torch.distributed is initialised, but the model has no {name} process group in it",
        "Call dump() while the groups stand that initialize_model_parallel() or the model's pg_collection made.",
    )
