"""Global expert ids in the keys against the ids each MoE layer says it holds.

`sharded_state_dict` numbers experts contiguously by ep rank; a layer with another placement would be exported
under wrong ids, silently. This is where that is noticed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import ExpertIdsError, MissingTensorError

from .holdings import Claimed

# live names: SequentialMLP numbers modules, TEGroupedMLP numbers parameters, both by local id
_LOCAL = re.compile(r"\.local_experts\.(\d+)\.|\.(?:weight|bias)(\d+)$")


def check_expert_ids(model: nn.Module, claimed: Iterable[Claimed], blueprint: Blueprint, rank: int) -> None:
    """Compare ids for every MoE layer of one model chunk, and require every weight of every local expert.

    Raises ExpertIdsError, MissingTensorError.
    """
    experts = [one for one in claimed if one.parameter.is_routed_expert]
    for name, module in model.named_modules():
        indices = getattr(module, "local_expert_indices", None)
        if indices is not None and hasattr(module, "experts"):
            prefix = f"{name}.experts."
            own = [one for one in experts if one.parameter.name.startswith(prefix)]
            _check_layer(name, [int(i) for i in indices], own, blueprint, rank)


def _check_layer(
    name: str, indices: list[int], own: Sequence[Claimed], blueprint: Blueprint, rank: int
) -> None:
    found = dict(sorted(_local_to_global(own)))
    got = tuple(found.values())
    if got != tuple(indices) or list(found) != list(range(len(indices))):
        raise ExpertIdsError(name, rank, got, tuple(indices))
    rows_of = defaultdict[int, set[str]](set)
    for one in own:
        rows_of[one.claim.expert or 0].update(tensor.name for tensor in one.claim.tensors)
    for expert, names in rows_of.items():
        for tensor in blueprint.expert_tensors(own[0].claim.layer or 0, expert):
            if tensor.name not in names:
                raise MissingTensorError(
                    tensor.name, tensor.shape, f"rank {rank}, which holds expert {expert},"
                )


def _local_to_global(own: Iterable[Claimed]) -> Iterator[tuple[int, int]]:
    for one in own:
        local = _LOCAL.search(one.parameter.name)
        if local is not None and one.claim.expert is not None:
            yield int(local[1] or local[2]), one.claim.expert
