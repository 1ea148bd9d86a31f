"""Do replicas hold the same bytes? A rank that holds what another wrote recorded the checksum of its own bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shardmerge.common.errors import Findings, ReplicaMismatchError
from shardmerge.common.rectangle import place

from ..ledger.rows import IntArray, Rows
from ..ledger.table import Ledger
from .case import Case


def check(case: Case) -> Findings:
    """Compare every held rectangle with the written one of the same tensor, offset and shape."""
    rows = case.ledger.rows
    held, written = np.flatnonzero(~rows.written), np.flatnonzero(rows.written)
    if case.dropped:
        held = held[~np.isin(rows.name[held], case.ledger.name_ids(sorted(case.dropped)))]
    if not len(held):
        return Findings()
    written = written[np.isin(rows.name[written], rows.name[held])]
    partner = _partners(rows, held, written)
    matched = held[partner >= 0]
    partner = partner[partner >= 0]
    differ = (rows.xxh3_128[matched] != rows.xxh3_128[partner]).any(axis=1)
    unmatched = len(held) - len(matched)
    warning = f"{unmatched:,} replicas could not be compared: nobody wrote the same rectangle"
    differing = tuple(_mismatches(case.ledger, matched[differ], partner[differ]))
    return Findings(differing, (warning,) if unmatched else ())


def _partners(rows: Rows, held: IntArray, written: IntArray) -> IntArray:
    """Return [held] a row of `written` that is the same rectangle, -1 where there is none."""
    both = np.concatenate([written, held])
    columns = [column[both] for column in (*rows.global_offset, *rows.local_shape)]
    keys = [*columns, rows.dtype[both], rows.name[both]]
    order = np.lexsort(keys)  # stable: of equal rectangles the written one comes first
    changed = np.zeros(len(both), bool)
    changed[0] = True
    for key in keys:
        values = key[order]
        changed[1:] |= values[1:] != values[:-1]
    first = order[np.maximum.accumulate(np.where(changed, np.arange(len(both)), 0))]
    same = np.empty(len(both), np.int64)
    same[order] = first
    partner = same[len(written) :]
    return np.where(partner < len(written), both[partner], -1)


def _mismatches(ledger: Ledger, held: IntArray, written: IntArray) -> Iterator[ReplicaMismatchError]:
    """Yield a problem for each written rectangle that replicas contradict, with their ranks."""
    rows = ledger.rows
    for partner in np.unique(written):
        ranks = rows.ranks_of(held[written == partner])
        name = ledger.names[rows.name[partner]]
        yield ReplicaMismatchError(name, place(*rows.box(partner)), int(rows.rank[partner]), ranks)
