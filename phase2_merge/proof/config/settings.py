"""Does config.json make readers compute what the model computes? Compares settings, which show in no shape.

The only comparison of the two: the proof, `metadata` and `verify` all use it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.common.architectures import Blueprint
from shardmerge.common.architectures.settings.says import Synonyms, contradictions
from shardmerge.common.architectures.settings.vocabulary import MTP_SETTINGS, SETTINGS, agree, spell
from shardmerge.common.errors import (
    ConfigContradictionError,
    ConfigMismatchError,
    Findings,
    MixedSettingsError,
    ModelTypeError,
    ShardmergeError,
)
from shardmerge.common.manifest import Manifest
from shardmerge.common.manifest_facts import Facts

from ..case import Case

UNKNOWN = "The dump does not say what the model computes with: config.json was compared with shapes and dtypes alone."
PADDED = "vocab_size, of which megatron-core knows a padded number only"


@dataclass(frozen=True, slots=True)
class Compared:
    """What was compared of config.json, for the report.

    Attributes:
        settings: Names of the settings that were compared.
        differing: Those of them that differ.
        not_compared: In words, what the source does not tell.
    """

    settings: tuple[str, ...]
    differing: tuple[str, ...]
    not_compared: tuple[str, ...]


def check(case: Case) -> Findings:
    """Find settings that ranks tell differently, that config.json says twice, and that differ from the model's."""
    facts = case.manifests[0].facts
    problems = (
        *disagreements([head.manifest for head in case.ledger.heads]),
        *contradictions_of(case.blueprint),
        *differences(case.blueprint, facts, mtp=case.mtp),
    )
    return Findings(problems, () if facts.settings is not None else (UNKNOWN,))


def disagreements(manifests: Sequence[Manifest]) -> Iterator[MixedSettingsError]:
    """Yield a problem for each setting that ranks tell differently."""
    ranks: dict[str, dict[int, Any]] = {}
    for manifest in manifests:
        for name, value in (manifest.facts.settings or {}).items():
            ranks.setdefault(name, {})[manifest.rank] = value
    for name, told in sorted(ranks.items()):
        first = next(iter(told.values()))
        if others := tuple(
            rank for rank, value in told.items() if value != first and not agree(value, first)
        ):
            rank = next(iter(told))
            yield MixedSettingsError(name, rank, spell(name, first), others, spell(name, told[others[0]]))


def contradictions_of(blueprint: Blueprint) -> Iterator[ConfigContradictionError | ModelTypeError]:
    """Yield a problem for what config.json says twice and differently, the architecture and its model_type among it."""
    table, said = blueprint.architecture, blueprint.config.get("model_type")
    if table.model_types and said not in table.model_types:
        yield ModelTypeError(None if said is None else str(said), table.name, table.model_types)
    yield from said_twice(blueprint.config, blueprint.synonyms)


def said_twice(config: Mapping[str, Any], synonyms: Iterable[Synonyms]) -> Iterator[ConfigContradictionError]:
    """Yield a problem for each two keys of config.json that mean the same and say different things."""
    for (one, value), (other, differs) in contradictions(config, synonyms):
        yield ConfigContradictionError(one, spell("", value), other, spell("", differs))


def allowed_before(problems: Iterable[ShardmergeError], warnings: Collection[str]) -> Findings:
    """Return problems, of which those are warnings that a merge allowed, word for word, in its own `warnings`."""
    findings = Findings(tuple(problems))
    given = [problem for problem in findings.problems if _allowed(problem) in warnings]
    return Findings(
        tuple(problem for problem in findings.problems if problem not in given),
        tuple(map(_allowed, given)),
    )


def differences(blueprint: Blueprint, facts: Facts, *, mtp: str) -> Iterator[ShardmergeError]:
    """Yield a problem for each setting that config.json says in no way that is known; else for each that differs.

    Args:
        blueprint: The config.json, with the table of its architecture.
        facts: Of the dump.
        mtp: Where multi-token prediction comes from, as `Case.mtp`: only what was trained is compared.

    Returns:
        Problems that are not raised.
    """
    if unreadable := tuple(blueprint.unreadable_settings()):
        yield from unreadable
        return
    for name, (told, said, keys) in _pairs(blueprint, facts, mtp).items():
        if not agree(told, said):
            yield ConfigMismatchError(
                name,
                SETTINGS[name].meaning,
                spell(name, told),
                spell(name, said),
                keys,
                blueprint.architecture.name,
            )


def compared(blueprint: Blueprint, facts: Facts, *, mtp: str) -> Compared:
    """Return what `differences` compares, whatever it finds.

    Args:
        blueprint: The config.json, with the table of its architecture.
        facts: Of the dump.
        mtp: Where multi-token prediction comes from.

    Returns:
        Names for the report.
    """
    pairs = _pairs(blueprint, facts, mtp)
    settings = facts.settings or {}
    lines = [
        f"{name} ({', '.join(said.keys)})"
        for name, said in blueprint.settings().items()
        if said.keys and name not in settings and not (name in MTP_SETTINGS and mtp != "trained")
    ]
    lines += [f"{name}, an option of the model's own config class" for name in facts.own_options or ()]
    return Compared(
        tuple(pairs),
        tuple(name for name, (told, said, _) in pairs.items() if not agree(told, said)),
        (*lines, PADDED),
    )


def _pairs(blueprint: Blueprint, facts: Facts, mtp: str) -> dict[str, tuple[Any, Any, tuple[str, ...]]]:
    """Return, of each setting that both tell, what the model says, what config.json says, and the keys that say it."""
    said = blueprint.settings()
    told = {
        name: value
        for name, value in (facts.settings or {}).items()
        if name in said and not (name in MTP_SETTINGS and mtp != "trained")
    }
    return {name: (value, said[name].value, said[name].keys) for name, value in told.items()}


def _allowed(problem: ShardmergeError) -> str:
    return Findings((problem,)).allowing([problem.allow]).warnings[0] if problem.allow else ""
