"""Compares the global expert ids in the keys with the ids that each MoE layer says it holds.

megatron-core numbers experts contiguously by ep rank in its keys. A layer with another placement would silently be
exported under wrong ids. Must not know how a source finds the ids of a layer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import ExpertIdsError, MissingTensorError

from .claims import Claimed

# live names: SequentialMLP numbers modules, TEGroupedMLP numbers parameters, both by local id
_LOCAL = re.compile(r"\.local_experts\.(\d+)\.|\.(?:weight|bias)(\d+)$")


def check_expert_ids(
    layers: Mapping[str, Sequence[int]], claimed: Iterable[Claimed], blueprint: Blueprint, rank: int
) -> None:
    """Compare ids for every MoE layer of one model chunk, and require every weight of every local expert.

    Args:
        layers: global ids of the local experts of each MoE layer, in their order; by the name of the layer, with
            which names of its parameters begin.
        claimed: the parameters of the chunk.
        blueprint: the table that claimed them; it knows the weights of an expert.
        rank: for messages.

    Raises:
        ExpertIdsError: the keys name other experts than the layer, or in another order.
        MissingTensorError: an expert lacks one of its weights.
    """
    by_layer = defaultdict[str, list[Claimed]](list)
    for weight in claimed:
        if weight.parameter.is_routed_expert:
            by_layer[weight.parameter.name.partition(".experts.")[0]].append(weight)
    for name, indices in layers.items():
        _check_layer(name, tuple(indices), by_layer[name], blueprint, rank)


def _check_layer(
    name: str, indices: tuple[int, ...], own: Sequence[Claimed], blueprint: Blueprint, rank: int
) -> None:
    global_of_local = dict(sorted(_local_to_global(own)))
    got = tuple(global_of_local.values())
    if got != indices or list(global_of_local) != list(range(len(indices))):
        raise ExpertIdsError(name, rank, got, indices)
    rows_of = defaultdict[int, set[tuple[str, ...]]](set)
    for weight in own:
        rows_of[weight.claim.expert or 0].add(weight.claim.row.keys)
    if not own:
        return
    layer = own[0].claim.layer or 0
    wanted = {claim.row.keys for claim in blueprint.expert_claims(layer, expert=0)}
    for expert, rows in rows_of.items():
        if wanted <= rows:
            continue
        claims = blueprint.expert_claims(layer, expert)
        tensor = next(claim.tensors[0] for claim in claims if claim.row.keys not in rows)
        raise MissingTensorError(tensor.name, tensor.shape, f"rank {rank}, which holds expert {expert},")


def _local_to_global(own: Iterable[Claimed]) -> Iterator[tuple[int, int]]:
    for weight in own:
        local = _LOCAL.search(weight.parameter.name)
        if local is not None and weight.claim.expert is not None:
            yield int(local[1] or local[2]), weight.claim.expert
