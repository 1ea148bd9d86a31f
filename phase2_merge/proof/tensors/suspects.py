"""Who should have written what is missing although every rank is there: ranks that hold its neighbours and none of it.

Neighbours are tensors of the same layer, for a routed expert of the same expert. Where a rank stood is read from its
manifest. Looks at names and owners only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from shardmerge.common.errors import MissingTensorError, ShardmergeError, UncoveredTensorError

from ...ledger.graft import REFERENCE_RANK
from ...ledger.names import expert_of, layer_of
from ...ledger.table import Ledger
from .missing_ranks import axes_to_tell

Neighbourhood = tuple[int, int | None]


def with_suspects(ledger: Ledger, incomplete: Mapping[str, ShardmergeError]) -> list[ShardmergeError]:
    """The same errors, with the ranks that owe what is missing where its neighbours tell them."""
    wanted = {where for name in incomplete if (where := _neighbourhood(name)) is not None}
    if not wanted:
        return list(incomplete.values())
    holders, axes = _holders(ledger, wanted), axes_to_tell(ledger)
    places = {head.manifest.rank: head.manifest.coordinates for head in ledger.heads}

    def told(name: str, error: ShardmergeError) -> ShardmergeError:
        if not isinstance(error, MissingTensorError | UncoveredTensorError):
            return error
        wrote = error.ranks if isinstance(error, UncoveredTensorError) else ()
        owing = tuple(sorted(holders.get(_neighbourhood(name), set()) - set(wrote)))
        place = places[owing[0]] if len(owing) == 1 else {}
        where = ", ".join(f"{axis} {place[axis]}" for axis in axes if axis in place)
        return replace(error, owed_by=owing, where=where)

    return [told(name, error) for name, error in incomplete.items()]


def _neighbourhood(name: str) -> Neighbourhood | None:
    """Layer and routed expert; None for what is in no layer, whose neighbours may be on another stage."""
    layer = layer_of(name)
    return None if layer is None else (layer, expert_of(name))


def _holders(ledger: Ledger, wanted: Iterable[Neighbourhood]) -> dict[Neighbourhood | None, set[int]]:
    """The ranks that have a rectangle of each of these neighbourhoods."""
    number = {where: at for at, where in enumerate(wanted)}
    of_name = np.array(
        [number.get(where, -1) if (where := _neighbourhood(name)) else -1 for name in ledger.names]
    )
    rows = ledger.rows
    there = (of_name[rows.name] >= 0) & (rows.rank != REFERENCE_RANK)
    pairs = np.unique(np.stack([of_name[rows.name][there], rows.rank[there]]), axis=1)
    found: dict[Neighbourhood | None, set[int]] = defaultdict(set)
    known = list(number)
    for at, rank in pairs.T.tolist():
        found[known[at]].add(rank)
    return found
