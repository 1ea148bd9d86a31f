"""Does --graft take only what no rank holds? Of a tensor that both hold nobody could tell which one is meant."""

from __future__ import annotations

import numpy as np

from shardmerge.common.errors import BadInputError, Findings

from ..ledger.graft import REFERENCE_RANK
from ..ledger.table import Ledger
from .case import Case


def check(case: Case) -> Findings:
    """One problem, for the first tensor that ranks and the reference both hold."""
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
    """Names of all tensors that ranks hold, not looked for where nothing is grafted."""
    if not ledger.grafted:
        return set()
    dumped = np.unique(ledger.rows.name[ledger.rows.rank != REFERENCE_RANK])
    return {ledger.names[number] for number in dumped.tolist()}
