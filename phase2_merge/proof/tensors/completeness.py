"""Is every expected tensor there, whole, once, in its dtype, and nothing else? And who owes what is missing?"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.errors import Findings

from ..case import Case
from .missing_ranks import owing


def check(case: Case) -> Findings:
    """What is wrong with tensors, then missing ranks, then what is missing though none of them could owe it."""
    verdict = case.verdict
    missing = owing(case.ledger, verdict.incomplete, case.failures)
    filled = case.quantization.told() if case.quantization else []
    return Findings((*verdict.problems, *missing), (*verdict.warnings, *_failed_but_complete(case), *filled))


def _failed_but_complete(case: Case) -> Iterator[str]:
    """Ranks that recorded a failure, and were then dumped again."""
    present = {manifest.rank for manifest in case.manifests}
    for rank in sorted(present & set(case.failures)):
        yield f"rank {rank} recorded a failure ({case.failures[rank]}), but has a manifest"
