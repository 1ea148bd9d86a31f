"""What exactly overlaps in a tensor that is not tiled, and what is missing.

Looks at one tensor at a time, for messages. Must not know the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

from shardmerge.common.rectangle import Shape, intersect, place

Box = tuple[Shape, Shape]  # offset, shape
MAX_CELLS = 1 << 20


def overlapping(boxes: Sequence[Box]) -> tuple[int, int] | None:
    """Return the positions of two boxes that share an element, or None."""
    order = sorted(range(len(boxes)), key=lambda i: boxes[i])
    for at, i in enumerate(order):
        for j in order[at + 1 :]:
            if boxes[j][0][:1] >= _end(boxes[i]):  # sorted by their first offset: no later one can reach back
                break
            if intersect(*boxes[i], *boxes[j]):
                return min(i, j), max(i, j)
    return None


def _end(box: Box) -> Shape:
    """Return where a box ends along its first dimension, past everything for a scalar."""
    offset, shape = box
    return (offset[0] + shape[0],) if shape else (0,)


def missing(boxes: Sequence[Box], global_shape: Shape) -> tuple[Box, ...] | None:
    """Return what no box covers, as few large boxes where that is easy. None if the grid of boxes is too fine."""
    cuts = [_cuts(boxes, size, dim) for dim, size in enumerate(global_shape)]
    if prod(len(cut) - 1 for cut in cuts) > MAX_CELLS:
        return None
    covered: set[tuple[int, ...]] = set()
    for offset, shape in boxes:
        spans = [_span(cut, at, at + size) for cut, at, size in zip(cuts, offset, shape, strict=True)]
        covered.update(product(*spans))
    cells = [cell for cell in product(*(range(len(cut) - 1) for cut in cuts)) if cell not in covered]
    return tuple(_joined([_box(cell, cuts) for cell in cells]))


def show(boxes: Sequence[Box], shown: int = 4) -> str:
    """Return the first boxes and how many more there are: `[0:4, 0:8], [4:8, 0:8] and 3 more`."""
    more = len(boxes) - shown
    return ", ".join(place(*box) for box in boxes[:shown]) + (f" and {more} more" if more > 0 else "")


def _cuts(boxes: Sequence[Box], size: int, dim: int) -> list[int]:
    """Return all places along a dimension where a box begins or ends, and its two ends."""
    inner = {edge for offset, shape in boxes for edge in (offset[dim], offset[dim] + shape[dim])}
    return sorted(inner | {0, size})


def _span(cut: list[int], begin: int, end: int) -> range:
    return range(cut.index(begin), cut.index(end))


def _box(cell: tuple[int, ...], cuts: list[list[int]]) -> Box:
    offset = tuple(cut[at] for cut, at in zip(cuts, cell, strict=True))
    return offset, tuple(cut[at + 1] - cut[at] for cut, at in zip(cuts, cell, strict=True))


def _joined(boxes: list[Box]) -> list[Box]:
    """Join neighbours along each dimension, the last dimension first."""
    for dim in reversed(range(len(boxes[0][0]) if boxes else 0)):
        boxes = _joined_along(dim, boxes)
    return boxes


def _joined_along(dim: int, boxes: list[Box]) -> list[Box]:
    joined: list[Box] = []
    for box in sorted(boxes, key=lambda box: (_without(box[0], dim), _without(box[1], dim), box[0][dim])):
        if joined and _continues(joined[-1], box, dim):
            offset, shape = joined[-1]
            joined[-1] = offset, (*shape[:dim], shape[dim] + box[1][dim], *shape[dim + 1 :])
        else:
            joined.append(box)
    return sorted(joined)


def _continues(before: Box, after: Box, dim: int) -> bool:
    same = all(_without(b, dim) == _without(a, dim) for b, a in zip(before, after, strict=True))
    return same and before[0][dim] + before[1][dim] == after[0][dim]


def _without(shape: Shape, dim: int) -> Shape:
    return shape[:dim] + shape[dim + 1 :]
