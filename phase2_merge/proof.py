"""The proof that a dump is whole, in its order: reference, ranks, generation, tensors, replicas, health, fragments.

Everything that is wrong is collected before anything is raised, except that later steps are not tried on ranks that
do not belong together: they would only repeat it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardmerge.common import reference as references
from shardmerge.common.architectures import Blueprint, blueprint
from shardmerge.common.errors import BadInputError, ShardmergeError
from shardmerge.common.problems import raise_problems
from shardmerge.common.reference import Reference

from . import generations, health, ledger, replicas
from .completeness import Verdict, judge
from .debt import debt
from .expected import ExpectedTensor, expected_tensors
from .fragments import Fragment, check_headers, fragments
from .ledger import Ledger
from .rank_directories import discover

ALLOWANCES = ("nan", "replicas")


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """What was proven, and what a plan is made of."""

    reference: Reference
    blueprint: Blueprint
    ledger: Ledger
    expected: list[ExpectedTensor]
    verdict: Verdict
    fragments: list[Fragment]
    warnings: tuple[str, ...]


def prove(dumps: Sequence[Path], hf_reference: Path, allow: Collection[str] = ()) -> Proof:
    """Read manifests and headers, and prove everything but the bytes. Raises one error of the tree, or all."""
    _refuse_unknown(allow)
    reference = references.read(hf_reference)
    table = blueprint(reference.config)
    found = discover(dumps)
    book = ledger.read(found)
    manifests = [head.manifest for head in book.heads]
    raise_problems(generations.disagreements(manifests))
    raise_problems(generations.quantized(manifests))
    raise_problems(generations.against_reference(manifests[0], table))
    expected = expected_tensors(table, reference, manifests[0].facts)
    verdict = judge(book, expected, table.architecture.name)
    problems = verdict.problems + _incomplete(book, verdict, found.failures)
    warnings = [*verdict.warnings, *_failed_but_complete(book, found.failures)]
    _judge_values(book, verdict, allow, problems, warnings)
    every = fragments(book)
    raise_problems(problems + check_headers(book, every))
    return Proof(reference, table, book, expected, verdict, every, tuple(warnings))


def _refuse_unknown(allow: Collection[str]) -> None:
    if strange := sorted(set(allow) - set(ALLOWANCES)):
        raise BadInputError(f"allow {', '.join(strange)}", f"Known: {', '.join(ALLOWANCES)}.")


def _incomplete(book: Ledger, verdict: Verdict, failures: dict[int, str]) -> list[ShardmergeError]:
    """Missing ranks, and what is missing though none of them could owe it."""
    found = debt(book, list(verdict.incomplete), failures)
    rest = (error for name, error in verdict.incomplete.items() if name not in found.owed)
    return [*found.missing, *rest]


def _failed_but_complete(book: Ledger, failures: dict[int, str]) -> list[str]:
    present = {head.manifest.rank for head in book.heads}
    return [
        f"rank {rank} recorded a failure ({failures[rank]}), but has a manifest"
        for rank in sorted(present & set(failures))
    ]


def _judge_values(
    book: Ledger,
    verdict: Verdict,
    allow: Collection[str],
    problems: list[ShardmergeError],
    warnings: list[str],
) -> None:
    agreed = replicas.agreement(book)
    for kind, found in (("replicas", agreed.differing), ("nan", tuple(health.nonfinite(book, verdict.kept)))):
        if kind in allow:
            warnings += [f"{error.message()} (allowed)" for error in found]
        else:
            problems += found
    if agreed.unmatched:
        warnings.append(
            f"{agreed.unmatched:,} replicas could not be compared: nobody wrote the same rectangle"
        )
    warnings += health.all_zero(book, verdict.kept)
