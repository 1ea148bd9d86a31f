"""The map of layers and experts as a drawing (SVG), as wide as a screen for 8 experts and for 512.

Neighbours in the same state are one rectangle, so that the drawing of a whole dump is small. Must not know any file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from .coverage import FULL, LayerCover

WORDS = {"full": "whole", "part": "in part", "none": "nothing", "double": "twice"}
WIDTH = 1024  # of all experts, if there are many
CELL = 12  # pixels, if there are few
NARROW = 5  # below that no lines are drawn between experts
LEFT, REST, TOP = 52, 24, 18  # of labels, of what is no expert, and of the axis
ROW, LOW_ROW, MANY_LAYERS = 14, 10, 48
TICK = 24  # pixels between two numbers of the axis, at least
MOST_LINES = 20  # of what is not whole, in words


def svg(layers: Sequence[LayerCover]) -> str:
    """Return the drawing of at least one layer."""
    experts = max(len(cover.experts) for cover in layers)
    cell = max(1, min(CELL, WIDTH // experts)) if experts else 0
    row = ROW if len(layers) <= MANY_LAYERS else LOW_ROW
    width, height = LEFT + REST + 4 + experts * cell + 30, TOP + row * len(layers)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [f'<svg class="map" {size} role="img" aria-label="coverage of layers and experts">']
    parts += _axis(experts, cell)
    for number, cover in enumerate(layers):
        parts += _row(cover, TOP + number * row, row, cell)
    parts += _lines(experts, cell, height)
    return "".join([*parts, "</svg>"])


def _left(expert: int, cell: int) -> int:
    """Return where the cell of an expert begins."""
    return LEFT + REST + 4 + expert * cell


def _axis(experts: int, cell: int) -> Iterator[str]:
    """Yield numbers of experts above their cells, every 2, 4, 8 .. of them."""
    step = 1
    while experts and step * cell < TICK:
        step *= 2
    for expert in range(0, experts, step):
        yield f'<text class="tick" x="{_left(expert, cell)}" y="{TOP - 6}">{expert}</text>'


def _row(cover: LayerCover, top: int, row: int, cell: int) -> Iterator[str]:
    yield f'<text x="{LEFT - 6}" y="{top + row - 3}" text-anchor="end">{cover.label}</text>'
    name = f"layer {cover.label}"
    yield _rectangle(LEFT, top, REST, row - 1, cover.rest, name)
    for state, first, last in _runs(cover):
        width = cell * (last + 1 - first)
        yield _rectangle(_left(first, cell), top, width, row - 1, state, f"{name}, {_who(first, last)}")


def _runs(cover: LayerCover) -> Iterator[tuple[str, int, int]]:
    """Yield each state of neighbouring experts, with the first and the last of them."""
    for state, group in groupby(enumerate(cover.experts), key=lambda one: one[1]):
        numbers = [expert for expert, _ in group]
        yield state, numbers[0], numbers[-1]


def _who(first: int, last: int) -> str:
    return f"expert {first}" if first == last else f"experts {first} to {last}"


def not_whole(layers: Sequence[LayerCover]) -> list[str]:
    """Return in words what of the map is not whole, at most MOST_LINES lines."""
    found = [
        f"layer {cover.label}, {what}: {WORDS[state]}"
        for cover in layers
        for what, state in (
            ("all but experts", cover.rest),
            *((_who(first, last), state) for state, first, last in _runs(cover)),
        )
        if state != FULL
    ]
    more = len(found) - MOST_LINES
    return found[:MOST_LINES] + ([f"... and {more:,} more"] if more > 0 else [])


def _rectangle(left: int, top: int, width: int, height: int, state: str, what: str) -> str:
    title = f"<title>{what}: {WORDS[state]}</title>"
    return f'<rect class="{state}" x="{left}" y="{top}" width="{width}" height="{height}">{title}</rect>'


def _lines(experts: int, cell: int, height: int) -> Iterator[str]:
    """Yield white lines between experts that are wide enough for them."""
    if cell >= NARROW:
        lines = "".join(f"M{_left(expert, cell) - 0.5} {TOP}V{height}" for expert in range(1, experts))
        yield f'<path d="{lines}" stroke="#fff" pointer-events="none"/>'
