"""The check of tensors: is each there, whole, once, in its dtype, and which ranks owe what is missing?

Joins what `verdict` and `missing_ranks` find, and must not look at rectangles itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.errors import Findings

from ..case import Case
from ..config import mtp
from .missing_ranks import owing


def check(case: Case) -> Findings:
    """Find what is wrong with tensors, then missing ranks, then what is missing though none of them could owe it."""
    verdict = case.verdict
    missing = mtp.as_one(case, owing(case.ledger, verdict.incomplete, case.failures))
    return Findings((*verdict.problems, *missing), (*verdict.warnings, *_failed_but_complete(case)))


def _failed_but_complete(case: Case) -> Iterator[str]:
    """Yield a warning for each rank that recorded a failure, and was then dumped again."""
    present = {manifest.rank for manifest in case.manifests}
    for rank in sorted(present & set(case.failures)):
        yield f"rank {rank} recorded a failure ({case.failures[rank]}), but has a manifest"
