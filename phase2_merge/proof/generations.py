"""Do the ranks' manifests belong together? Compares facts alone, and looks at no rectangle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardmerge.common import canonical_json
from shardmerge.common.errors import Findings, MixedGenerationsError, ShardmergeError
from shardmerge.common.manifest import Manifest

from .case import Case

ONE_GENERATION = ("run_id", "step", "attempt", "world_size", "architecture")


def check(case: Case) -> Findings:
    """Find every field on which ranks do not agree."""
    return Findings(tuple(disagreements(case.manifests)))


def disagreements(manifests: Sequence[Manifest]) -> list[ShardmergeError]:
    """Return a problem for each field on which manifests do not agree, with the ranks that have each value."""
    problems: list[ShardmergeError] = []
    for name in ONE_GENERATION:
        problems += _mixed(name, {manifest.rank: getattr(manifest, name) for manifest in manifests})
    problems += _mixed("topology", {manifest.rank: _sizes(manifest) for manifest in manifests})
    if all(manifest.facts == manifests[0].facts for manifest in manifests):
        return problems
    facts = {manifest.rank: manifest.facts.as_json() for manifest in manifests}
    for name in sorted({key for by_name in facts.values() for key in by_name}):
        problems += _mixed(f"facts.{name}", {rank: by_name.get(name) for rank, by_name in facts.items()})
    return problems


def _sizes(manifest: Manifest) -> dict[str, int]:
    """Return the size of each axis."""
    return {axis: len(group) for axis, group in manifest.groups.items()}


def _mixed(name: str, by_rank: dict[int, Any]) -> list[ShardmergeError]:
    """Return one problem if ranks have several values, else none."""
    ranks: dict[str, list[int]] = {}
    for rank, value in by_rank.items():
        ranks.setdefault(_spell(value), []).append(rank)
    if len(ranks) < 2:
        return []
    return [MixedGenerationsError(name, {value: tuple(members) for value, members in ranks.items()})]


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json.encode(value).decode().strip()
