"""Is multi-token prediction (MTP) promised and held, or neither? Readers miss it without a word."""

from __future__ import annotations

from collections.abc import Iterable

from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import Findings, MissingTensorError, MtpMismatchError, ShardmergeError

from ..case import Case


def check(case: Case) -> Findings:
    """Find that it is promised and nobody holds any of it, or the reverse. What is missing in part is not told here."""
    table = case.blueprint
    if table.architecture.mtp is None or case.asked.drop_mtp:
        return Findings()
    held, listed = _first(table, case.ledger.names), _first(table, case.reference.tensors)
    promised = _first(table, case.expected.names) if table.mtp_layers else ""
    is_whole = len(case.manifests) == case.manifests[0].world_size  # else a missing rank may have it
    if (promised and not held and is_whole) or (not promised and (held or listed)):
        return Findings((MtpMismatchError(promised, held, listed),))
    return Findings()


def as_one(case: Case, missing: Iterable[ShardmergeError]) -> tuple[ShardmergeError, ...]:
    """Put one problem in front for all tensors of it that are missing, if nobody holds any of it.

    Such tensors are among `missing` only if no rank that is missing can have held them: where it can, that rank is
    what to look for first.
    """
    table, errors = case.blueprint, tuple(missing)
    if not table.mtp_layers or _first(table, case.ledger.names):
        return errors
    of_it = [isinstance(error, MissingTensorError) and table.is_mtp(error.tensor) for error in errors]
    if not any(of_it):
        return errors
    promised, listed = _first(table, case.expected.names), _first(table, case.reference.tensors)
    others = (error for error, own in zip(errors, of_it, strict=True) if not own)
    return (MtpMismatchError(promised, "", listed), *others)


def _first(table: Blueprint, names: Iterable[str]) -> str:
    """Return the first name that is of MTP, "" for none."""
    return next(filter(table.is_mtp, names), "")
