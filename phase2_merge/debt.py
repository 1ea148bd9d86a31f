"""Ranks without a manifest: where they stood, and what they owe. Read from their peers, never from rank arithmetic.

A peer's `groups` hold the global ranks along each axis through it, so they place the missing rank; ranks of the
same pipeline stage tell its layers, ranks at the same expert coordinate its experts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shardmerge.common.errors import MissingRankError

from .ledger import Ledger
from .naming import expert_of, layer_of, summary

AXES = (
    "pp",
    "tp",
    "cp",
    "ep",
    "etp",
    "dp",
    "edp",
)  # as messages name them; later ones often repeat earlier ones
GRIDS = (("pp", "tp", "cp", "dp"), ("pp", "ep", "etp", "edp"))  # megatron lays ranks out twice: experts apart
NOTHING = "no tensor is missing without it, but nothing proves that it held none"


@dataclass(frozen=True, slots=True)
class Holdings:
    """Layers and experts, by coordinate on an axis; `every` is what any present rank holds."""

    by_coordinate: dict[int, set[int]]
    every: set[int]

    def may_hold(self, coordinate: int | None, number: int) -> bool:
        """Whether a rank there held this; if nobody there is left, whether nobody else holds it. Unknown: maybe."""
        if coordinate is None:
            return True
        own = self.by_coordinate.get(coordinate)
        return number in own if own else number not in self.every


def missing_ranks(
    ledger: Ledger, incomplete: Sequence[str], failures: dict[int, str]
) -> Iterator[MissingRankError]:
    """An error for each rank without a manifest, with the tensors among `incomplete` that it owes."""
    present = {head.manifest.rank for head in ledger.heads}
    absent = [rank for rank in range(ledger.heads[0].manifest.world_size) if rank not in present]
    if absent:
        owed = debts(ledger, absent, incomplete)
        for rank in absent:
            debt = summary(owed[rank]) if owed[rank] else NOTHING
            yield MissingRankError(rank, told(ledger, rank), debt, failures.get(rank))


def debts(ledger: Ledger, absent: Sequence[int], incomplete: Sequence[str]) -> dict[int, list[str]]:
    """The incomplete tensors that each absent rank may have held a part of."""
    layers, experts = _holdings(ledger, "pp", layer_of), _holdings(ledger, "ep", expert_of)
    ids = [(name, layer_of(name), expert_of(name)) for name in incomplete]
    found: dict[int, list[str]] = {}
    for rank in absent:
        at = coordinates(ledger, rank)
        ends = _at_an_end(ledger, at.get("pp"))
        found[rank] = [
            name
            for name, layer, expert in ids
            if (ends if layer is None else layers.may_hold(at.get("pp"), layer))
            and (expert is None or experts.may_hold(at.get("ep"), expert))
        ]
    return found


def _at_an_end(ledger: Ledger, stage: int | None) -> bool:
    """Whether a rank of this stage may hold what belongs to no layer: the first and the last stage do."""
    last = max(len(group) for group in _every_group(ledger, "pp")) - 1
    return stage is None or stage in (0, last)


def coordinates(ledger: Ledger, rank: int) -> dict[str, int]:
    """Where a missing rank stood, on every axis that its peers tell.

    A peer along an axis lists it in its group there; on the other axes of the same grid the two stand alike.
    """
    found: dict[str, int] = {}
    for head in ledger.heads:
        groups, at = head.manifest.groups, head.manifest.coordinates
        for axis in (axis for axis in AXES if rank in groups.get(axis, ())):
            found.setdefault(axis, groups[axis].index(rank))
            for alike in (a for grid in GRIDS if axis in grid for a in grid if a != axis and a in at):
                found.setdefault(alike, at[alike])
    return found


def told(ledger: Ledger, rank: int) -> dict[str, int]:
    """The same for messages: without axes of size one, and without those that repeat an earlier one."""
    found = coordinates(ledger, rank)
    shown: list[str] = []
    for axis in (axis for axis in AXES if axis in found):
        groups = _every_group(ledger, axis)
        if any(len(group) > 1 for group in groups) and all(
            groups != _every_group(ledger, other) for other in shown
        ):
            shown.append(axis)
    return {axis: found[axis] for axis in shown}


def _every_group(ledger: Ledger, axis: str) -> list[list[int]]:
    return [head.manifest.groups.get(axis, []) for head in ledger.heads]


def _holdings(ledger: Ledger, axis: str, number_of: Callable[[str], int | None]) -> Holdings:
    numbers = np.array([-1 if (n := number_of(name)) is None else n for name in ledger.names], np.int64)
    rows = ledger.rows
    by_coordinate: dict[int, set[int]] = defaultdict(set)
    every: set[int] = set()
    at_rank = {head.manifest.rank: head.manifest.coordinates.get(axis) for head in ledger.heads}
    for rank, number in np.unique(np.stack([rows.rank, numbers[rows.name]]), axis=1).T.tolist():
        if number >= 0:
            every.add(number)
            if (coordinate := at_rank[rank]) is not None:
                by_coordinate[coordinate].add(number)
    return Holdings(dict(by_coordinate), every)
