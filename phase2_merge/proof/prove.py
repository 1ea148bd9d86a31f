"""The proof that a dump is whole, as two lists of checks. A new check is a module of its own and a line here.

A check is a function of a `Case` that returns `Findings`: problems, which stop a merge, and warnings. Everything that
is wrong is collected before anything is raised, except that a gate ends the proof: what follows would only repeat it.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import Findings, raise_problems
from shardmerge.common.processes import garbage_collector
from shardmerge.common.reference import Reference

from ..corrections.changes import Change
from ..corrections.record import Recorded, recorded
from ..corrections.settle import settled
from ..corrections.written import of_part
from ..ledger.fragments import Fragment
from ..ledger.table import Ledger
from ..options import Asked
from ..quantization import json_files
from ..quantization.united import Quantization
from . import case as cases
from . import experts, generations, grafts, headers, health, quantization, replicas
from .case import Case
from .config import mtp, settings, shapes, vision
from .config.settings import Compared
from .tensors import completeness
from .tensors.expected import Expected
from .tensors.verdict import Verdict

# The first that finds a problem ends the proof: ranks, reference and formats must belong together.
GATES = (
    generations.check,
    experts.check,
    shapes.check_facts,
    shapes.check_number,
    quantization.check_formats,
    grafts.check,
    mtp.check,
    vision.check,
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
    """What was proven, which a plan is made of. `changes` are made to what was said, `corrections` are for the report.

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
    changes: tuple[Change, ...]
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
        of_quantization, told = _quantization(case)
        passed = _passed(Findings.together((*gates, *checks)).allowing(asked.allow))
        return Proof(
            case.reference,
            case.blueprint,
            case.ledger,
            case.expected,
            case.verdict,
            case.fragments,
            passed.warnings,
            case.corrections | told,
            (*case.changes, *of_quantization),
            case.quantization,
            case.mtp,
            settings.compared(case.blueprint, case.manifests[0].facts, mtp=case.mtp),
        )


def _passed(findings: Findings) -> Findings:
    """Raise the problems, if there are any. Returns the findings."""
    raise_problems(findings.problems)
    return findings


def _quantization(case: Case) -> tuple[tuple[Change, ...], Recorded]:
    """Return the changes of what the quantization says, and the same for the report. Raises BadInputError."""
    if not of_part("quantization", case.given):
        return (), {}
    weights = ((tensor.name, tensor.shape) for tensor in case.expected)
    before = json_files.statements(*json_files.both(case.quantization, weights))
    changes = settled("quantization", before, case.given)
    return changes, recorded("quantization", before, changes)
