"""Ranks without a manifest: where they stood, and what they owe. Read from their peers, never from rank arithmetic.

A peer's `groups` hold the global ranks along each axis through it, so they place the missing rank; ranks of the
same pipeline stage tell its layers, ranks at the same expert coordinate its experts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shardmerge.common.errors import MissingRankError

from ...ledger.names import expert_of, layer_of, summary
from ...ledger.table import Ledger

AXES = (
    "pp",
    "tp",
    "cp",
    "ep",
    "etp",
    "dp",
    "edp",
)  # in the order of messages; later ones often repeat earlier ones
GRIDS = (("pp", "tp", "cp", "dp"), ("pp", "ep", "etp", "edp"))  # megatron lays ranks out twice: experts apart
NOTHING = "no tensor is missing without it, but nothing proves that it held none"


@dataclass(frozen=True, slots=True)
class Debt:
    """An error per missing rank, and the tensors that they owe together."""

    missing: tuple[MissingRankError, ...]
    owed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Holdings:
    """Layers or experts, by coordinate on an axis; `every` is what any present rank holds."""

    by_coordinate: dict[int, set[int]]
    every: set[int]

    def may_hold(self, coordinate: int | None, number: int) -> bool:
        """Whether a rank there held this; if nobody there is left, whether nobody else holds it. Unknown: maybe."""
        if coordinate is None:
            return True
        own = self.by_coordinate.get(coordinate)
        return number in own if own else number not in self.every


def debt(ledger: Ledger, incomplete: Sequence[str], failures: dict[int, str]) -> Debt:
    """What ranks without a manifest owe of the `incomplete` tensors; `failures` are the reasons they recorded."""
    present = set(ledger.rows.present.tolist())
    absent = [rank for rank in range(ledger.heads[0].manifest.world_size) if rank not in present]
    if not absent:
        return Debt((), frozenset())
    places, axes = coordinates(ledger, absent), axes_to_tell(ledger)
    owed = _owed(ledger, places, incomplete)
    missing = [
        MissingRankError(
            rank,
            {axis: places[rank][axis] for axis in axes if axis in places[rank]},
            summary(owed[rank]) if owed[rank] else NOTHING,
            failures.get(rank),
        )
        for rank in absent
    ]
    return Debt(tuple(missing), frozenset(name for names in owed.values() for name in names))


def coordinates(ledger: Ledger, absent: Sequence[int]) -> dict[int, dict[str, int]]:
    """Where missing ranks stood, on every axis that their peers tell.

    A peer along an axis lists the rank in its group there; on the other axes of the same grid the two stand alike.
    """
    found: dict[int, dict[str, int]] = {rank: {} for rank in absent}
    for head in ledger.heads:
        alike = head.manifest.coordinates
        for axis, group in head.manifest.groups.items():
            for at, rank in enumerate(group):
                if rank in found:
                    others = {a: alike[a] for grid in GRIDS if axis in grid for a in grid if a in alike}
                    found[rank] = others | found[rank] | {axis: at}
    return found


def _owed(
    ledger: Ledger, places: dict[int, dict[str, int]], incomplete: Sequence[str]
) -> dict[int, list[str]]:
    """The incomplete tensors that each rank may have held a part of; ranks of one stage and expert group share."""
    layers, experts = _holdings(ledger, "pp", layer_of), _holdings(ledger, "ep", expert_of)
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


def axes_to_tell(ledger: Ledger) -> list[str]:
    """Axes for messages: without those of size one, and without those that repeat an earlier one."""
    groups = {axis: [head.manifest.groups.get(axis, []) for head in ledger.heads] for axis in AXES}
    found: list[str] = []
    for axis in AXES:
        divides = any(len(group) > 1 for group in groups[axis])
        if divides and all(groups[axis] != groups[other] for other in found):
            found.append(axis)
    return found


def _holdings(ledger: Ledger, axis: str, number_of: Callable[[str], int | None]) -> Holdings:
    """What present ranks hold, by their coordinate on the axis."""
    numbers = np.array([-1 if (n := number_of(name)) is None else n for name in ledger.names], np.int64)
    rows = ledger.rows
    by_coordinate: dict[int, set[int]] = defaultdict(set)
    every: set[int] = set()
    at_rank = {head.manifest.rank: head.manifest.coordinates.get(axis) for head in ledger.heads}
    for rank, number in np.unique(np.stack([rows.rank, numbers[rows.name]]), axis=1).T.tolist():
        if number >= 0:
            every.add(number)
            if (coordinate := at_rank.get(rank)) is not None:  # what is grafted is nobody's
                by_coordinate[coordinate].add(number)
    return Holdings(dict(by_coordinate), every)
