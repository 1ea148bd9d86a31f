"""Does a config.json describe the model that was dumped, and the tensors that are held?

The only comparison of the two. The proof, `metadata` and `verify` all use it, and decide which differences stop them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shardmerge.common.architectures import Architecture, Blueprint
from shardmerge.common.architectures.digest import table_digest
from shardmerge.common.errors import (
    Findings,
    MismatchError,
    MissingFactsError,
    MissingTensorError,
    ShardmergeError,
    TableMismatchError,
)
from shardmerge.common.manifest_facts import Facts
from shardmerge.common.rectangle import Shape

from ..case import Case
from ..tensors.expected import TABLE

# tensors that are named if they are missing: so many, and so many more for each that the ranks of a dump hold
MANY, MANY_TIMES = 10_000, 100


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs.

    `problems`: tensors that are described and not held so, in the order of layers. `strange`: names of tensors that are
    held and not described.
    """

    problems: tuple[ShardmergeError, ...] = ()
    strange: tuple[str, ...] = ()


def check_facts(case: Case) -> Findings:
    """Compare architecture, table and dimensions: one problem for each of them, not one for each tensor.

    A dump that does not say what its model is proves nothing.
    """
    first = case.manifests[0]
    different: list[ShardmergeError] = [*against_dump(case.blueprint, first.architecture, first.facts)]
    missing = tuple(_missing(case.blueprint, first.facts))
    if missing and first.architecture == case.blueprint.architecture.name:
        different.append(MissingFactsError(missing))
    return Findings(tuple(different))


def check_number(case: Case) -> Findings:
    """Look whether config.json describes far more tensors than ranks can hold: one problem, not one for each."""
    held = len(case.ledger.names)
    ranks_for_each_present = -(-case.manifests[0].world_size // len(case.manifests))
    return Findings(tuple(_far_more(case.blueprint, MANY + MANY_TIMES * held * ranks_for_each_present, held)))


def _far_more(blueprint: Blueprint, most: int, held: int) -> Iterator[MismatchError]:
    """Yield a mismatch if config.json describes more than `most` tensors, where `held` are there."""
    if (count := blueprint.num_tensors()) > most:
        what = "the number of tensors it describes"
        yield MismatchError("config.json", what, f"{count:,}", f"about {held:,}")


def _missing(blueprint: Blueprint, facts: Facts) -> Iterator[str]:
    """Yield what a manifest must say of the model, and does not: its dtype, and each dimension of the table."""
    if facts.dtype is None:
        yield "facts.dtype"
    for name in sorted(blueprint.dimensions.keys() - (facts.dimensions or {}).keys()):
        yield f"facts.dimensions.{name}"


def against_dump(
    blueprint: Blueprint, architecture: str, facts: Facts
) -> tuple[TableMismatchError | MismatchError, ...]:
    """Find that a model was dumped with another table, or else that config.json describes another model.

    Args:
        blueprint: the config.json, with the table of its architecture.
        architecture: the name of the architecture that was dumped.
        facts: what the dump says of the model, with corrections.

    Returns:
        The other table, or what `against_facts` yields of the same arguments.
    """
    same = architecture == blueprint.architecture.name
    other = tuple(against_table(blueprint.architecture, facts)) if same else ()
    return other or tuple(against_facts(blueprint, architecture, facts))


def against_facts(blueprint: Blueprint, architecture: str, facts: Facts) -> Iterator[MismatchError]:
    """Yield where config.json describes another model than the one that was dumped.

    Args:
        blueprint: the config.json, with the table of its architecture.
        architecture: the name of the architecture that was dumped.
        facts: what the dump says of the model, with corrections; `dimensions` are by name.

    Returns:
        An iterator over a mismatch of the architecture alone, or of every dimension that differs.
    """
    if architecture != blueprint.architecture.name:
        dumped_as = f"{architecture}, as dumped"
        yield MismatchError("config.json", "architecture", blueprint.architecture.name, dumped_as)
        return
    dumped = facts.dimensions or {}
    for name, value in sorted(blueprint.dimensions.items()):
        if name in dumped and dumped[name] != value:
            yield MismatchError("config.json", name, str(value), f"{dumped[name]}, as dumped")


def against_table(table: Architecture, facts: Facts) -> Iterator[TableMismatchError]:
    """Yield a mismatch if a model was dumped with another table of its architecture. Older dumps do not say."""
    given = table_digest(table)
    if facts.table not in (None, given):
        yield TableMismatchError(table.name, facts.table or "", given)


def against_tensors(blueprint: Blueprint, held: Mapping[str, Shape | None]) -> Comparison:
    """Compare every tensor that config.json describes with those that are held.

    Args:
        blueprint: the config.json, with the table of its architecture.
        held: name to shape. A packed weight has [N, K], the shape of the weight it stands for, or None where nobody
            can tell it. Tensors that no table lists, such as scales, are left out.

    Returns:
        What differs. A config.json of a far larger model is one mismatch, not one for each of its tensors.
    """
    if problem := tuple(_far_more(blueprint, 2 * len(held) + MANY, len(held))):
        return Comparison(problem)
    if blueprint.shapes() == held:  # as it should be, and quickly
        return Comparison()
    unseen = dict(held)
    problems: list[ShardmergeError] = []
    required_by = TABLE.format(blueprint.architecture.name)
    for name, shape, _ in blueprint.tensors():
        if name not in unseen:
            problems.append(MissingTensorError(name, shape, required_by))
            continue
        got = unseen.pop(name)
        if got is not None and got != shape:
            problems.append(MismatchError(name, "shape", str(list(got)), str(list(shape))))
    return Comparison(tuple(problems), tuple(unseen))
