"""Does --graft take only what no rank holds? If both hold a tensor, nobody can tell which one is meant."""

from __future__ import annotations

import numpy as np

from shardmerge.common.errors import BadInputError, Findings

from ..ledger.graft import REFERENCE_RANK
from ..ledger.table import Ledger
from .case import Case


def check(case: Case) -> Findings:
    """Find the first tensor that ranks hold and that is grafted as well."""
    grafted = {name for file in case.ledger.grafted for name in file.names}
    if not (twice := sorted(grafted & _dumped(case.ledger))):
        return Findings()
    more = f" ({len(twice):,} such)" if twice[1:] else ""
    problem = BadInputError(
        f"--graft takes {twice[0]} from the reference{more}",
        "The dump holds it: narrow the pattern to what training never held.",
    )
    return Findings((problem,))


def _dumped(ledger: Ledger) -> set[str]:
    """Return the names of all tensors that ranks hold, and none where nothing is grafted."""
    if not ledger.grafted:
        return set()
    dumped = np.unique(ledger.rows.name[ledger.rows.rank != REFERENCE_RANK])
    return {ledger.names[number] for number in dumped.tolist()}
