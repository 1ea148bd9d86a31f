"""Finds the rank that writes what several ranks hold, and hashes what this rank leaves to another.

The merge compares the checksums; whether replicas agree is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardmerge.common.manifest import NOT_WRITTEN, Placed

from ..source import Holding, Source
from .replica_owner import Candidate, owners
from .writer import checksums


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """A holding, and the rank that writes the same rectangle."""

    holding: Holding
    owner: int


def owners_of(holdings: Sequence[Holding]) -> tuple[int, ...]:
    """Return the rank that writes each holding: exactly one of those that hold the rectangle."""
    candidates = (Candidate(h.rectangle.fragment_key, h.rectangle.num_bytes, h.replicas) for h in holdings)
    writer = owners(candidates)
    return tuple(writer[holding.rectangle.fragment_key] for holding in holdings)


def owned(holdings: Sequence[Holding], rank: int) -> tuple[Holding, ...]:
    """Return the holdings that this rank writes."""
    return tuple(h for h, owner in zip(holdings, owners_of(holdings), strict=True) if owner == rank)


def replicas_of(source: Source) -> tuple[Replica, ...]:
    """Return everything that this rank holds and another one writes.

    Which rank writes the original of a stage copy is known only in the other pipeline stage. The first rank of this
    rank's pipeline group stands for it.
    """
    pairs = zip(source.holdings, owners_of(source.holdings), strict=True)
    replicas = [Replica(holding, owner) for holding, owner in pairs if owner != source.world.rank]
    return (*replicas, *(Replica(copy, source.world.groups["pp"][0]) for copy in source.stage_copies))


def hashed(replicas: Sequence[Replica], source: Source) -> list[Placed]:
    """Return the rows of a manifest for replicas: their checksums, and who writes them."""
    digests = checksums([replica.holding for replica in replicas], source) if replicas else []
    return [
        Placed(replica.holding.rectangle, NOT_WRITTEN, 0, 0, replica.owner, checksum)
        for replica, checksum in zip(replicas, digests, strict=True)
    ]
