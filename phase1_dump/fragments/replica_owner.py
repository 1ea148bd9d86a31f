"""Decides which of the ranks that hold the same rectangle writes it; every rank computes this alone.

All members of a replica group list the group's rectangles in the same order (bytes descending, then key) and give
each to the least loaded member, the lowest rank among equals. So with R replicas each writes about 1/R, and nobody
asks anybody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rectangle that `replicas` (global ranks, ascending) all hold, so that any of them may write it."""

    key: str
    num_bytes: int
    replicas: tuple[int, ...]


def owners(candidates: Iterable[Candidate]) -> dict[str, int]:
    """Return the global rank that writes each rectangle, by key. All members of a group get the same answer."""
    groups: dict[tuple[int, ...], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.replicas].append(candidate)
    owner_of: dict[str, int] = {}
    for replicas, members in groups.items():
        load = dict.fromkeys(replicas, 0)
        for candidate in sorted(members, key=lambda h: (-h.num_bytes, h.key)):
            owner = min(load, key=lambda rank: (load[rank], rank))
            load[owner] += candidate.num_bytes
            owner_of[candidate.key] = owner
    return owner_of
