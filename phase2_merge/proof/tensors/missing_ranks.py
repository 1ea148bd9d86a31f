"""Which ranks owe what is missing: those without a manifest, else those that wrote its neighbours.

Where ranks stood is read from manifests, never from rank arithmetic. A peer's `groups` hold the global ranks along
each axis through it, so they place a missing rank. Ranks of the same pipeline stage show its layers, ranks at the same
expert coordinate its experts. Neighbours are tensors of the same layer, for a routed expert of the same expert.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from shardmerge.common.errors import (
    MissingRankError,
    MissingRanksError,
    ShardmergeError,
    UncoveredTensorError,
)
from shardmerge.common.manifest import AXES

from ...ledger.graft import REFERENCE_RANK
from ...ledger.names import expert_of, layer_of, summary
from ...ledger.table import Ledger
from .verdict import Incomplete

GRIDS = (("pp", "tp", "cp", "dp"), ("pp", "ep", "etp", "edp"))  # megatron lays ranks out twice: experts apart
# ranks that are named if they are missing: so many, and so many more for each that is there
MANY, MANY_TIMES = 10_000, 10
NOTHING = "no tensor is missing without it, but nothing proves that it held none"
Place: TypeAlias = dict[str, int]  # coordinate by axis
Neighbourhood: TypeAlias = tuple[int, int | None]  # layer, and for a routed expert the expert


def owing(
    ledger: Ledger, incomplete: Mapping[str, Incomplete], failures: Mapping[int, str]
) -> tuple[ShardmergeError, ...]:
    """Explain what is missing by the ranks that should have written it.

    Args:
        ledger: what ranks with a manifest wrote.
        incomplete: errors of tensors whose only fault is a missing part, by name.
        failures: the reasons that ranks recorded when they failed.

    Returns:
        An error for each rank without a manifest, then the errors of tensors of which no such rank can have held a
        part. Where their neighbours show which ranks owe these, they are named. One error alone if far more ranks are
        missing than are there.
    """
    present = set(ledger.rows.present.tolist())
    absent = [rank for rank in range(ledger.heads[0].manifest.world_size) if rank not in present]
    if not absent:
        return tuple(_with_owing_ranks(ledger, incomplete))
    if len(absent) > MANY + MANY_TIMES * len(present):
        return (MissingRanksError(len(absent), len(absent) + len(present)),)
    places = _places(ledger, absent)
    owed = _owed(ledger, places, list(incomplete))
    axes = _axes_for_messages(ledger)
    missing = [
        MissingRankError(
            rank,
            {axis: places[rank][axis] for axis in axes if axis in places[rank]},
            summary(owed[rank]) if owed[rank] else NOTHING,
            failures.get(rank),
        )
        for rank in absent
    ]
    explained = {name for names in owed.values() for name in names}
    rest = {name: error for name, error in incomplete.items() if name not in explained}
    return (*missing, *_with_owing_ranks(ledger, rest))


# ---- ranks without a manifest -------------------------------------------------------------------------------------


def _places(ledger: Ledger, absent: Sequence[int]) -> dict[int, Place]:
    """Return where missing ranks stood, on every axis that their peers know.

    A peer along an axis lists the rank in its group there; on the other axes of the same grid the two stand alike.
    """
    places: dict[int, Place] = {rank: {} for rank in absent}
    for head in ledger.heads:
        alike = head.manifest.coordinates
        for axis, group in head.manifest.groups.items():
            for coordinate, rank in enumerate(group):
                if rank in places:
                    others = {a: alike[a] for grid in GRIDS if axis in grid for a in grid if a in alike}
                    places[rank] = others | places[rank] | {axis: coordinate}
    return places


def _owed(ledger: Ledger, places: Mapping[int, Place], incomplete: Sequence[str]) -> dict[int, list[str]]:
    """Return the incomplete tensors that each rank may have held a part of.

    Ranks of one stage and expert coordinate share a list.
    """
    layers, experts = _seen(ledger, "pp", layer_of), _seen(ledger, "ep", expert_of)
    ids = [(name, layer_of(name), expert_of(name)) for name in incomplete]
    last = max(len(head.manifest.groups.get("pp", [0])) for head in ledger.heads) - 1
    known: dict[tuple[int | None, int | None], list[str]] = {}
    for place in places.values():
        stage, ep = place.get("pp"), place.get("ep")
        if (stage, ep) not in known:
            known[stage, ep] = [
                name
                for name, layer, expert in ids
                if (stage in (None, 0, last) if layer is None else layers.may_hold(stage, layer))
                and (expert is None or experts.may_hold(ep, expert))
            ]
    return {rank: known[place.get("pp"), place.get("ep")] for rank, place in places.items()}


@dataclass(frozen=True, slots=True)
class SeenIds:
    """Layers or experts that present ranks hold: by coordinate on an axis, and anywhere."""

    by_coordinate: Mapping[int, set[int]]
    anywhere: set[int]

    def may_hold(self, coordinate: int | None, number: int) -> bool:
        """Whether a missing rank at this coordinate may have held a layer or an expert.

        True if a present rank there holds it. If no rank there is present, true unless another rank holds it. Always
        true for an unknown coordinate.
        """
        if coordinate is None:
            return True
        own = self.by_coordinate.get(coordinate)
        return number in own if own else number not in self.anywhere


def _seen(ledger: Ledger, axis: str, number_of: Callable[[str], int | None]) -> SeenIds:
    """Return what present ranks hold, by their coordinate on the axis."""
    numbers = np.array([-1 if (n := number_of(name)) is None else n for name in ledger.names], np.int64)
    rows = ledger.rows
    by_coordinate: dict[int, set[int]] = defaultdict(set)
    anywhere: set[int] = set()
    coordinates = {head.manifest.rank: head.manifest.coordinates.get(axis) for head in ledger.heads}
    for rank, number in np.unique(np.stack([rows.rank, numbers[rows.name]]), axis=1).T.tolist():
        if number >= 0:
            anywhere.add(number)
            if (coordinate := coordinates.get(rank)) is not None:  # no rank wrote what is grafted
                by_coordinate[coordinate].add(number)
    return SeenIds(dict(by_coordinate), anywhere)


def _axes_for_messages(ledger: Ledger) -> list[str]:
    """Return the axes for messages: without those of size one, and without those that repeat an earlier one."""
    groups = {axis: [head.manifest.groups.get(axis, []) for head in ledger.heads] for axis in AXES}
    distinct: list[str] = []
    for axis in AXES:
        divides = any(len(group) > 1 for group in groups[axis])
        if divides and all(groups[axis] != groups[other] for other in distinct):
            distinct.append(axis)
    return distinct


# ---- ranks that wrote the neighbours ------------------------------------------------------------------------------


def _with_owing_ranks(ledger: Ledger, incomplete: Mapping[str, Incomplete]) -> list[Incomplete]:
    """Return the errors with the ranks that wrote other tensors of the same layer or expert, but not this one."""
    wanted = {where for name in incomplete if (where := _neighbourhood(name)) is not None}
    if not wanted:
        return list(incomplete.values())
    holders, axes = _holders(ledger, wanted), _axes_for_messages(ledger)
    places = {head.manifest.rank: head.manifest.coordinates for head in ledger.heads}

    def with_ranks(name: str, error: Incomplete) -> Incomplete:
        wrote = error.ranks if isinstance(error, UncoveredTensorError) else ()
        owed_by = tuple(sorted(holders.get(_neighbourhood(name), set()) - set(wrote)))
        place = places[owed_by[0]] if len(owed_by) == 1 else {}
        where = ", ".join(f"{axis} {place[axis]}" for axis in axes if axis in place)
        return replace(error, owed_by=owed_by, where=where)

    return [with_ranks(name, error) for name, error in incomplete.items()]


def _neighbourhood(name: str) -> Neighbourhood | None:
    """Return layer and routed expert. None for what is in no layer, whose neighbours may be on another stage."""
    layer = layer_of(name)
    return None if layer is None else (layer, expert_of(name))


def _holders(ledger: Ledger, wanted: Iterable[Neighbourhood]) -> dict[Neighbourhood | None, set[int]]:
    """Return the ranks that have a rectangle of each of these neighbourhoods."""
    number = {where: place for place, where in enumerate(wanted)}
    of_name = np.array(
        [number.get(where, -1) if (where := _neighbourhood(name)) else -1 for name in ledger.names]
    )
    rows = ledger.rows
    there = (of_name[rows.name] >= 0) & (rows.rank != REFERENCE_RANK)
    pairs = np.unique(np.stack([of_name[rows.name][there], rows.rank[there]]), axis=1)
    holders: dict[Neighbourhood | None, set[int]] = defaultdict(set)
    known = list(number)
    for place, rank in pairs.T.tolist():
        holders[known[place]].add(rank)
    return holders
