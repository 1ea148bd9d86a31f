"""The proof that a dump is whole, in its order: reference, ranks, generation, tensors, replicas, health, fragments.

Everything that is wrong is collected before anything is raised, except that later steps are not tried on ranks that
do not belong together: they would only repeat it.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shardmerge.common import reference as references
from shardmerge.common.architectures import Blueprint, blueprint
from shardmerge.common.errors import BadInputError, ShardmergeError, raise_problems
from shardmerge.common.manifest import Manifest
from shardmerge.common.reference import Reference

from ..corrections import Correction, Recorded, corrected, of_part, parse, recorded
from ..ledger import graft
from ..ledger import table as ledger
from ..ledger.fragments import Fragment, fragments
from ..ledger.rank_directories import discover
from ..ledger.table import Ledger
from ..options import ALLOWANCES
from ..quantization import json_files as quantization_json
from ..quantization.united import Quantization, Uncalibrated, united
from . import generations, health, replicas
from .headers import check_headers
from .tensors.completeness import Verdict, borrow, judge
from .tensors.expected import Expected, expected_tensors
from .tensors.missing_ranks import debt
from .tensors.suspects import with_suspects


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """What was proven, and what a plan is made of."""

    reference: Reference
    blueprint: Blueprint
    ledger: Ledger
    expected: Expected
    verdict: Verdict
    fragments: list[Fragment]
    warnings: tuple[str, ...]
    corrections: Recorded
    given: tuple[Correction, ...]
    quantization: Quantization | None = None

    def quantization_json(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """(hf_quant_config.json, config.json["quantization_config"]) as corrected, None for none."""
        return quantization_json.corrected_both(*self.declared_quantization(), self.given)

    def declared_quantization(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """(hf_quant_config.json, config.json["quantization_config"]), None for none."""
        if self.quantization is None:
            return None, None
        return quantization_json.both(self.quantization, ((one.name, one.shape) for one in self.expected))


@contextmanager
def _without_collector() -> Iterator[None]:
    """Millions of objects are made, none in a cycle: looking for cycles among them takes a tenth of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@_without_collector()
def prove(
    dumps: Sequence[str | Path],
    hf_reference: str | Path,
    allow: Collection[str] = (),
    uncalibrated: Uncalibrated = "error",
    corrections: Sequence[str] = (),
    grafts: Sequence[str] = (),
) -> Proof:
    """Read manifests and headers, and prove everything but the bytes. Raises one error of the tree, or all."""
    _refuse_unknown(allow)
    given = parse(corrections)
    reference = references.read(Path(hf_reference))
    told = recorded("config", reference.config, given)
    reference = replace(reference, config=corrected("config", reference.config, given))
    table = blueprint(reference.config)
    found = discover([Path(dump) for dump in dumps])
    grafted = graft.graft(reference, grafts)
    book = ledger.read(found, grafted)
    manifests = [head.manifest for head in book.heads]
    told |= recorded("facts", manifests[0].facts, given)
    manifests = [_corrected(one, given) for one in manifests]
    raise_problems(generations.disagreements(manifests))
    raise_problems(generations.against_reference(manifests[0], table))
    quantized, wrong = united(manifests, uncalibrated)
    if quantized is None:
        raise_problems(wrong)
    graft.refuse_held(grafted, _dumped_names(book))
    expected = expected_tensors(table, reference, manifests[0].facts, quantized, graft.tensors(grafted))
    verdict = judge(book, expected, table.architecture.name)
    borrow(book, verdict, expected, quantized.filled if quantized else {})
    problems = wrong + verdict.problems + _incomplete(book, verdict, found.failures)
    warnings = [*verdict.warnings, *_failed_but_complete(book, found.failures)]
    warnings += quantized.told() if quantized else []
    _judge_values(book, verdict, allow, problems, warnings)
    every = fragments(book)
    raise_problems(problems + check_headers(book, every))
    proof = Proof(reference, table, book, expected, verdict, every, tuple(warnings), told, given, quantized)
    return _with_quantization(proof) if of_part("quantization", given) else proof


def _dumped_names(book: Ledger) -> set[str]:
    if not book.grafted:
        return set()
    dumped = np.unique(book.rows.name[book.rows.rank != graft.REFERENCE])
    return {book.names[at] for at in dumped.tolist()}


def _with_quantization(found: Proof) -> Proof:
    """Record what the quantization was before it was corrected. Raises BadInputError for a key it does not have."""
    before = quantization_json.statements(*found.declared_quantization())
    corrected("quantization", before, found.given)
    return replace(found, corrections=found.corrections | recorded("quantization", before, found.given))


def _corrected(one: Manifest, given: Sequence[Correction]) -> Manifest:
    """A manifest's facts as they should be; the file and its digest stay as they are."""
    return replace(one, facts=corrected("facts", one.facts, given))


def _refuse_unknown(allow: Collection[str]) -> None:
    if strange := sorted(set(allow) - set(ALLOWANCES)):
        raise BadInputError(f"allow {', '.join(strange)}", f"Known: {', '.join(ALLOWANCES)}.")


def _incomplete(book: Ledger, verdict: Verdict, failures: dict[int, str]) -> list[ShardmergeError]:
    """Missing ranks, and what is missing though none of them could owe it."""
    found = debt(book, list(verdict.incomplete), failures)
    rest = {name: error for name, error in verdict.incomplete.items() if name not in found.owed}
    return [*found.missing, *with_suspects(book, rest)]


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
    """What was allowed goes last: it may be much, and ten warnings are shown."""
    agreed = replicas.agreement(book)
    if agreed.unmatched:
        warnings.append(
            f"{agreed.unmatched:,} replicas could not be compared: nobody wrote the same rectangle"
        )
    warnings += health.all_zero(book, verdict.kept)
    for kind, found in (("replicas", agreed.differing), ("nan", tuple(health.nonfinite(book, verdict.kept)))):
        if kind in allow:
            warnings += [f"{error.message()} (allowed)" for error in found]
        else:
            problems += found
