"""Do the ranks' manifests belong together? Facts only: no rectangle is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardmerge.common import canonical_json
from shardmerge.common.errors import Findings, MixedGenerationsError, ShardmergeError
from shardmerge.common.manifest import Manifest

from .case import Case

ONE_GENERATION = ("run_id", "step", "attempt", "world_size", "architecture")


def check(case: Case) -> Findings:
    """Every field on which ranks do not agree."""
    return Findings(tuple(disagreements(case.manifests)))


def disagreements(manifests: Sequence[Manifest]) -> list[ShardmergeError]:
    """What the manifests do not agree on, field by field, with the ranks behind each value."""
    problems: list[ShardmergeError] = []
    for name in ONE_GENERATION:
        problems += _mixed(name, {one.rank: getattr(one, name) for one in manifests})
    problems += _mixed("topology", {one.rank: _sizes(one) for one in manifests})
    if all(one.facts == manifests[0].facts for one in manifests):
        return problems
    facts = {one.rank: one.facts.as_json() for one in manifests}
    for name in sorted({key for said in facts.values() for key in said}):
        problems += _mixed(f"facts.{name}", {rank: said.get(name) for rank, said in facts.items()})
    return problems


def _sizes(one: Manifest) -> dict[str, int]:
    return {axis: len(group) for axis, group in one.groups.items()}


def _mixed(name: str, by_rank: dict[int, Any]) -> list[ShardmergeError]:
    ranks: dict[str, list[int]] = {}
    for rank, value in by_rank.items():
        ranks.setdefault(_spell(value), []).append(rank)
    if len(ranks) < 2:
        return []
    return [MixedGenerationsError(name, {value: tuple(members) for value, members in ranks.items()})]


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json.encode(value).decode().strip()
