"""How much of every layer and expert is there: a map of layers x experts. Must not know any file.

Without a reference nothing says what ought to be there, so a cell is measured by its fullest sibling: an expert that
has fewer tensors than another is not whole. The proof is `check`; this is what a person looks at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import click

from shardmerge.common.architectures.blueprint import MAX_EXPERTS, MAX_LAYERS

from ..ledger.names import FIRST_MTP, expert_of, layer_label, layer_of

NONE, PART, FULL, DOUBLE = "none", "part", "full", "double"
SIGNS = {NONE: (".", "red"), PART: ("-", "yellow"), FULL: ("#", "green"), DOUBLE: ("2", "magenta")}
MAX_COLUMNS = 64
MAX_CELLS = MAX_LAYERS + MAX_EXPERTS  # of a map; the largest models have a twentieth of it


@dataclass(frozen=True, slots=True)
class LayerCover:
    """A layer: state of all tensors but routed experts, and of every routed expert; no experts if it is dense."""

    layer: int
    rest: str
    experts: tuple[str, ...]

    @property
    def label(self) -> str:
        return layer_label(self.layer)


def cover(shares: Mapping[str, float], num_layers: int = 0, num_experts: int = 0) -> tuple[LayerCover, ...]:
    """Draw the map of layers and experts from how much of each tensor is there.

    Args:
        shares: Name of each tensor to its covered elements over all of its elements. Above 1 if some are there twice.
        num_layers: How many layers there must be at least, 0 where that is not known.
        num_experts: How many routed experts an MoE layer must have at least, 0 where that is not known.

    Returns:
        All layers, ascending, with as many experts for each MoE layer as any of them has. Nothing if they would be more
        than any model has: a single name with a large number is enough for that.
    """
    cells: dict[tuple[int, int | None], list[float]] = defaultdict(list)
    for name, share in shares.items():
        if (layer := layer_of(name)) is not None:
            cells[layer, expert_of(name)].append(share)
    routed = {cell: covered for cell, covered in cells.items() if cell[1] is not None}
    most = max(map(len, routed.values()), default=0)
    experts = max([num_experts, *(expert + 1 for _, expert in routed if expert is not None)])
    moe = {layer for layer, _ in routed}
    mtp = sorted({layer for layer, _ in cells if layer >= FIRST_MTP})
    layers = max([num_layers, *(layer + 1 for layer, _ in cells if layer < FIRST_MTP)])
    if layers + len(mtp) > MAX_LAYERS or layers + experts * len(moe) > MAX_CELLS:
        return ()
    return tuple(
        LayerCover(
            layer,
            _state(cells.get((layer, None), []), 1),
            tuple(_state(cells.get((layer, e), []), most) for e in range(experts)) if layer in moe else (),
        )
        for layer in (*range(layers), *mtp)
    )


def _state(shares: list[float], most: int) -> str:
    """Return the state of a cell from its tensors, of which the fullest cell of its kind has `most`."""
    if not shares:
        return NONE
    if max(shares) > 1:
        return DOUBLE
    return FULL if min(shares) == 1 and len(shares) >= most else PART


def drawn(layers: Iterable[LayerCover]) -> list[str]:
    """Return a line per layer, coloured. click.echo takes the colour away where there is no terminal."""
    return [
        f"{cover.label:>5} {_sign(cover.rest)} {''.join(map(_sign, _columns(cover.experts)))}".rstrip()
        for cover in layers
    ]


def _columns(experts: tuple[str, ...]) -> list[str]:
    """Return at most MAX_COLUMNS states: where several experts share a column, the worst of them is shown."""
    count = min(len(experts), MAX_COLUMNS)
    edges = [len(experts) * at // count for at in range(count + 1)] if count else []
    order = (NONE, PART, DOUBLE, FULL)
    return [min(experts[low:high], key=order.index) for low, high in pairwise(edges)]


def _sign(state: str) -> str:
    sign, colour = SIGNS[state]
    return click.style(sign, fg=colour)
