"""Do the ranks' manifests belong together, and to this reference? Facts only: no rectangle is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from shardmerge.common import canonical_json
from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import MismatchError, MixedGenerationsError, ShardmergeError
from shardmerge.common.manifest import Manifest

ONE_GENERATION = ("run_id", "step", "attempt", "world_size", "architecture")


def disagreements(manifests: Sequence[Manifest]) -> list[ShardmergeError]:
    """What the manifests do not agree on, field by field, with the ranks behind each value."""
    found: list[ShardmergeError] = []
    for name in ONE_GENERATION:
        found += _mixed(name, {one.rank: getattr(one, name) for one in manifests})
    found += _mixed("topology", {one.rank: _sizes(one) for one in manifests})
    if all(one.facts == manifests[0].facts for one in manifests):
        return found
    facts = {one.rank: one.facts.as_json() for one in manifests}
    for name in sorted({key for said in facts.values() for key in said}):
        found += _mixed(f"facts.{name}", {rank: said.get(name) for rank, said in facts.items()})
    return found


def against_reference(one: Manifest, blueprint: Blueprint) -> Iterator[ShardmergeError]:
    """Where the reference's config.json describes another model than the one that was dumped."""
    if one.architecture != blueprint.architecture.name:
        yield MismatchError(
            "config.json", "architecture", blueprint.architecture.name, f"{one.architecture}, as dumped"
        )
        return
    dumped = one.facts.dimensions or {}
    for name, value in sorted(blueprint.dimensions.items()):
        if name in dumped and dumped[name] != value:
            yield MismatchError("config.json", name, str(value), f"{dumped[name]}, as dumped")


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
