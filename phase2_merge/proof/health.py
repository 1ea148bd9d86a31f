"""Did the dump see strange numbers: NaN, infinities, all zero? Reads no tensor, only what ranks recorded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from shardmerge.common.errors import Findings, NonFiniteError
from shardmerge.common.errors.wording import counted

from ..ledger.names import expert_of, grouped, layer_label, layer_of, ranges
from ..ledger.rows import BoolArray
from ..ledger.table import Ledger
from .case import Case

SHIFTS = {
    "added": "added to",
    "subtracted": "subtracted from",
}  # keys of a manifest's health -> in a sentence


def check(case: Case) -> Findings:
    """Find NaN and infinities, which are problems, and as warnings tensors of zeros and norms that lost bits."""
    ledger, kept = case.ledger, case.verdict.kept
    warnings = (*_all_zero(ledger, kept), *_rounded_norms(case))
    return Findings(tuple(_nonfinite(ledger, kept)), warnings)


def _nonfinite(ledger: Ledger, kept: BoolArray) -> Iterator[NonFiniteError]:
    """Yield a problem for every tensor with NaN or infinite elements."""
    rows = ledger.rows
    sick = np.flatnonzero(kept & ((rows.nan_count > 0) | (rows.inf_count > 0)))
    for name in np.unique(rows.name[sick]):
        members = sick[rows.name[sick] == name]
        counts = int(rows.nan_count[members].sum()), int(rows.inf_count[members].sum())
        yield NonFiniteError(ledger.names[name], *counts, rows.ranks_of(members))


def _all_zero(ledger: Ledger, kept: BoolArray) -> list[str]:
    """Return a line for each group of tensors that are zero throughout, whole experts first."""
    rows = ledger.rows
    count = len(ledger.names)
    pieces = np.bincount(rows.name[kept], minlength=count)
    zeros = np.bincount(rows.name[kept & rows.all_zero], minlength=count)
    zero = {ledger.names[name] for name in np.flatnonzero((zeros == pieces) & (pieces > 0))}
    partly = [ledger.names[name] for name in np.flatnonzero((zeros > 0) & (zeros < pieces))]
    dead = _dead_experts(zero, [ledger.names[name] for name in np.flatnonzero(pieces)]) if zero else set()
    rest = sorted(name for name in zero if (layer_of(name), expert_of(name)) not in dead)
    lines = _dead_lines(dead)
    lines += [f"{line} {_verb(line)} all zero" for line in grouped(rest)]
    return lines + [f"{line}: whole rectangles are zero" for line in grouped(sorted(partly))]


def _rounded_norms(case: Case) -> Iterator[str]:
    """Yield a line about norms that are read otherwise than the model stores them, if some of them lost bits by it."""
    counts: Counter[str] = Counter()
    for manifest in case.manifests:
        counts.update(manifest.health.shifted_norms or {})
    told = [f"1 was {what} {counted(counts[how], 'element')}" for how, what in SHIFTS.items() if counts[how]]
    if counts["rounded"]:
        readers = (
            f"readers of {case.blueprint.architecture.name} take them otherwise than the model stores them"
        )
        yield (
            f"norms: {readers}. {' and '.join(told)} in float32, and {counts['rounded']:,} of the sums were rounded to "
            f"the dtype that is written. A reference that holds norms in float32 keeps them whole"
        )


def _dead_experts(zero: set[str], names: list[str]) -> set[tuple[int, int]]:
    """Return (layer, expert) of experts all of whose tensors are zero."""
    alive: dict[tuple[int, int], bool] = defaultdict(bool)
    for name in names:
        layer, expert = layer_of(name), expert_of(name)
        if layer is not None and expert is not None:
            alive[layer, expert] |= name not in zero
    return {expert for expert, lives in alive.items() if not lives}


def _dead_lines(dead: set[tuple[int, int]]) -> list[str]:
    """Return a line per layer: `experts 3 and 17 of layer 12 are all zero`."""
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, expert in sorted(dead):
        by_layer[layer].append(expert)
    return [
        f"experts {ranges(experts)} of layer {layer_label(layer)} are all zero"
        if len(experts) > 1
        else f"expert {experts[0]} of layer {layer_label(layer)} is all zero"
        for layer, experts in by_layer.items()
    ]


def _verb(line: str) -> str:
    return "are" if " of layers " in line or " of experts " in line else "is"
