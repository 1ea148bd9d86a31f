"""The proof that a dump is whole, as two lists of checks. A new check is a module of its own and a line here.

A check is a function of a `Case` that returns `Findings`: problems, which stop a merge, and warnings. Everything that
is wrong is collected before anything is raised, except that a gate ends the proof: what follows would only repeat it.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import Findings, raise_problems
from shardmerge.common.reference import Reference

from ..corrections import Correction, Recorded, corrected, of_part, recorded
from ..ledger.fragments import Fragment
from ..ledger.table import Ledger
from ..options import Asked
from ..quantization import json_files
from ..quantization.united import Quantization
from . import case as cases
from . import (
    garbage_collector,
    generations,
    grafts,
    headers,
    health,
    quantization,
    replicas,
)
from .case import Case
from .config import mtp, settings, shapes
from .config.settings import Compared
from .tensors import completeness
from .tensors.expected import Expected
from .tensors.verdict import Verdict

# The first that finds a problem ends the proof: ranks, reference and formats must belong together.
GATES = (
    generations.check,
    shapes.check_facts,
    shapes.check_number,
    quantization.check_formats,
    grafts.check,
    mtp.check,
)
# All run, and everything that they find is reported, in this order.
CHECKS = (
    settings.check,
    quantization.check_values,
    completeness.check,
    quantization.check_filled_in,
    replicas.check,
    health.check,
    headers.check,
)


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """What was proven, which a plan is made of. `given` are the corrections, `corrections` what they changed.

    `mtp` is where multi-token prediction comes from, as `Case.mtp`; `compared` is what was compared of config.json.
    """

    reference: Reference
    blueprint: Blueprint
    ledger: Ledger
    expected: Expected
    verdict: Verdict
    fragments: list[Fragment]
    warnings: tuple[str, ...]
    corrections: Recorded
    given: tuple[Correction, ...]
    quantization: Quantization | None
    mtp: str
    compared: Compared


def prove(asked: Asked) -> Proof:
    """Read manifests and headers, and prove everything but the bytes.

    Raises the one problem that was found, all of them as ProblemsFoundError, or OSError.
    """
    with garbage_collector.paused():
        case = cases.read(asked)
        gates = [_passed(gate(case)) for gate in GATES]
        checks = [check(case) for check in CHECKS]
        passed = _passed(Findings.together((*gates, *checks)).allowing(asked.allow))
        return Proof(
            case.reference,
            case.blueprint,
            case.ledger,
            case.expected,
            case.verdict,
            case.fragments,
            passed.warnings,
            case.corrections | _corrected_quantization(case),
            case.given,
            case.quantization,
            case.mtp,
            settings.compared(case.blueprint, case.manifests[0].facts, mtp=case.mtp),
        )


def _passed(findings: Findings) -> Findings:
    """Raise the problems, if there are any. Returns the findings."""
    raise_problems(findings.problems)
    return findings


def _corrected_quantization(case: Case) -> Recorded:
    """Return for the report what the quantization was and is. Raises BadInputError for a key that it does not have."""
    if not of_part("quantization", case.given):
        return {}
    weights = ((tensor.name, tensor.shape) for tensor in case.expected)
    before = json_files.statements(*json_files.both(case.quantization, weights))
    corrected("quantization", before, case.given)
    return recorded("quantization", before, case.given)
