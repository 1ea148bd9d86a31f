"""Did all ranks spell routed experts alike? Looks at no tensor."""

from __future__ import annotations

from collections import defaultdict

from shardmerge.common.errors import Findings, MixedSpellingsError

from .case import Case


def check(case: Case) -> Findings:
    """Find every part whose experts some ranks wrote one by one and others packed."""
    ranks: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for head in case.ledger.heads:
        for part, spelling in (head.manifest.facts.experts or {}).items():
            ranks[part][spelling].append(head.manifest.rank)
    return Findings(
        tuple(
            MixedSpellingsError(part, {spelling: tuple(members) for spelling, members in told.items()})
            for part, told in sorted(ranks.items())
            if len(told) > 1
        )
    )
