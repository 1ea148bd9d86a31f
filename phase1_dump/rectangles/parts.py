"""Joins the parts of one tensor that a rank holds in several places into as few rectangles as possible.

All of them become one rectangle if they fill their bounding box, else runs of rows do. Copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from shardmerge.common.quantization.rows import Encoding
from shardmerge.common.rectangle import Shape

from .layouts.box import Turn


@dataclass(frozen=True, slots=True)
class Scalar:
    """The data of a part that is a single number known beforehand, such as a scale."""

    value: float


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Elements at `source` of `data`, bound for `offset` of the Hugging Face tensor, where there are `shape` of them.

    `data` is a handle of the source that described the parameter, or a `Scalar`. `turn` as of a `Piece`.
    """

    data: Any
    source: Shape
    offset: Shape
    shape: Shape
    turn: Turn | None = None

    @property
    def source_shape(self) -> Shape:
        """How many elements of `data` it has in each of its dimensions."""
        if self.turn is None:
            return self.shape
        sizes = {
            axis: size for axis, size in zip(self.turn.axes, self.shape, strict=True) if axis is not None
        }
        return tuple(sizes[axis] for axis in range(len(self.source)))

    @property
    def end(self) -> Shape:
        """The first place behind it in each dimension of the Hugging Face tensor."""
        if self.turn is None:
            return tuple(map(sum, zip(self.offset, self.shape, strict=True)))
        each = zip(self.offset, self.shape, self.turn.step, strict=True)
        return tuple(at + (size - 1) * step + 1 if size else at for at, size, step in each)

    def shared(self, offset: Shape, shape: Shape) -> SharedPart | None:
        """Return what it has of a box of the Hugging Face tensor, None if it has nothing."""
        skipped, extent, target, step = [], [], [], self.turn.step if self.turn else (1,) * len(self.shape)
        for at, size, every, low, wide in zip(self.offset, self.shape, step, offset, shape, strict=True):
            first = max(0, -(-(low - at) // every))
            last = min(size, -(-(low + wide - at) // every))
            if first >= last:
                return None
            skipped.append(first)
            extent.append(last - first)
            target.append(at + first * every - low)
        return SharedPart(tuple(skipped), tuple(extent), tuple(target), step)


@dataclass(frozen=True, slots=True)
class SharedPart:
    """What a part has of a box of the Hugging Face tensor, in the dimensions of that tensor.

    Attributes:
        skipped: How many of the part's elements lie before the box.
        extent: How many lie in it.
        target: Where the first of them lies in the box.
        step: How far apart they lie.
    """

    skipped: Shape
    extent: Shape
    target: Shape
    step: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How a source makes the bytes of a holding: from which parts, and as what their bits are to be inspected."""

    parts: tuple[Part, ...]
    encoding: Encoding = Encoding.FLOAT
    is_scale: bool = False


def join(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Yield groups of parts that each fill a box: all parts if they do, else runs along the first dimension."""
    ordered = sorted(parts, key=lambda part: part.offset)
    if fills_bounds(ordered):
        yield ordered
        return
    run: list[Part] = []
    for part in sorted(parts, key=lambda part: (part.offset[1:], part.offset)):
        if run and not fills_bounds([*run, part]):
            yield run
            run = []
        run.append(part)
    yield run


def bounds(parts: Sequence[Part]) -> tuple[Shape, Shape]:
    """Return offset and shape of the smallest box around all parts."""
    low = tuple(map(min, *(part.offset for part in parts))) if len(parts) > 1 else parts[0].offset
    ends = [part.end for part in parts]
    high = tuple(map(max, *ends)) if len(ends) > 1 else ends[0]
    return low, tuple(end - start for start, end in zip(low, high, strict=True))


def fills_bounds(parts: Sequence[Part]) -> bool:
    """Whether the parts, which never overlap, leave no hole in the box around them."""
    if len(parts) == 1 and parts[0].turn is None:
        return True
    return prod(bounds(parts)[1]) == sum(prod(part.shape) for part in parts)


def boxes_in_order(offset: Shape, shape: Shape, max_elements: int) -> Iterator[tuple[Shape, Shape]]:
    """Cut a box into boxes whose elements follow each other, each of at most `max_elements` or one row.

    Rows are cut first; a row of matrices, as the experts of a packed tensor, is cut into rows of its own.

    Args:
        offset: where the box begins.
        shape: its size, of one dimension at least.
        max_elements: how many elements each may have.

    Returns:
        (offset, shape) of each, in the order of rows.
    """
    rows = max(1, max_elements // max(1, prod(shape[1:])))
    for first in range(0, max(1, shape[0]), rows):
        box = ((offset[0] + first, *offset[1:]), (min(rows, shape[0] - first), *shape[1:]))
        if rows == 1 and len(shape) > 2 and shape[0] and prod(shape[1:]) > max_elements:
            for inner, extent in boxes_in_order(offset[1:], shape[1:], max_elements):
                yield (box[0][0], *inner), (1, *extent)
        else:
            yield box
