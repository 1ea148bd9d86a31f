"""Is multi-token prediction (MTP) promised and held, or neither? Readers miss it without a word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import (
    Findings,
    MissingTensorError,
    MtpMismatchError,
    ShardmergeError,
    UnexpectedTensorError,
)

from ..case import Case
from ..tensors.expected import TABLE


def check(case: Case) -> Findings:
    """Find that it is promised and nobody holds any of it, or the reverse. What is missing in part is not told here."""
    table = case.blueprint
    if table.architecture.mtp is None or case.asked.drop_mtp:
        return Findings()
    held, listed = _first(table, case.ledger.names), _first(table, case.reference.tensors)
    promised = _first(table, case.expected.names) if table.mtp_layers else ""
    is_whole = len(case.manifests) == case.manifests[0].world_size  # else a missing rank may have it
    if (promised and not held and is_whole) or (not promised and (held or listed)):
        return Findings((MtpMismatchError(promised, held, listed, table.mtp_key),))
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
    return (MtpMismatchError(promised, "", listed, table.mtp_key), *others)


def against_names(table: Blueprint, names: Iterable[str]) -> Iterator[ShardmergeError]:
    """Yield where config.json and the tensors that are held disagree about multi-token prediction.

    Args:
        table: the config.json, with the table of its architecture.
        names: of all tensors. Shapes are not looked at, so weights may be packed; what is not a weight may be a scale.

    Returns:
        An iterator over the broken promise alone, or over every tensor of a step that is not there or not promised.
    """
    if table.architecture.mtp is None:
        return
    held = list(filter(table.is_mtp, names))
    families = [family for family in table.families() if table.is_mtp(family.names[0])]
    promised = {name: family.shape for family in families for name in family.names}
    if not held or not promised:
        if held or promised:
            yield MtpMismatchError(next(iter(promised), ""), next(iter(held), ""), "", table.mtp_key)
        return
    required_by, there = TABLE.format(table.architecture.name), {*held}
    for name, shape in promised.items():
        if name not in there:
            yield MissingTensorError(name, shape, required_by)
    for name in held:
        if name.endswith(".weight") and name not in promised:
            yield UnexpectedTensorError(name, (), table.architecture.name)


def _first(table: Blueprint, names: Iterable[str]) -> str:
    """Return the first name that is of MTP, "" for none."""
    return next(filter(table.is_mtp, names), "")
