"""What this rank holds and another writes: hashed, not written, so that the merge can tell whether replicas agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardmerge.common.manifest import NOT_WRITTEN, Placed

from ..rectangles.holdings import Holding
from ..sources.world import World
from .plan import owners_of
from .writer import Staging, checksum_of


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """A holding, and the rank that writes the same rectangle."""

    holding: Holding
    owner: int


def replicas_of(
    holdings: Sequence[Holding], stage_copies: Sequence[Holding], world: World
) -> tuple[Replica, ...]:
    """Every holding that another rank writes.

    Who that is of a copy of another pipeline stage's tensor only that stage can tell; its rank in this rank's
    pipeline group stands for it.
    """
    pairs = zip(holdings, owners_of(holdings), strict=True)
    replicas = [Replica(holding, owner) for holding, owner in pairs if owner != world.rank]
    return (*replicas, *(Replica(copy, world.groups["pp"][0]) for copy in stage_copies))


def hashed(replica: Replica, staging: Staging) -> Placed:
    """The row that a manifest holds for it."""
    checksum = checksum_of(replica.holding, staging)
    return Placed(replica.holding.rectangle, NOT_WRITTEN, 0, 0, replica.owner, checksum)
