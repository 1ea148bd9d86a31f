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


@dataclass(frozen=True, slots=True)
class Scalar:
    """The data of a part that is a single number known beforehand, such as a scale."""

    value: float


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """`shape` elements at `source` of `data`, bound for `offset` of the Hugging Face tensor.

    `data` is a handle of the source that described the parameter, or a `Scalar`.
    """

    data: Any
    source: Shape
    offset: Shape
    shape: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How a source makes the bytes of a holding: from which parts, and as what their bits are to be inspected."""

    parts: tuple[Part, ...]
    encoding: Encoding = Encoding.FLOAT
    is_scale: bool = False


def join(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Yield groups of parts that each fill a box: all parts if they do, else runs along the first dimension."""
    ordered = sorted(parts, key=lambda part: part.offset)
    if _fills_bounds(ordered):
        yield ordered
        return
    run: list[Part] = []
    for part in sorted(parts, key=lambda part: (part.offset[1:], part.offset)):
        if run and not _fills_bounds([*run, part]):
            yield run
            run = []
        run.append(part)
    yield run


def bounds(parts: Sequence[Part]) -> tuple[Shape, Shape]:
    """Return offset and shape of the smallest box around all parts."""
    low = tuple(map(min, *(part.offset for part in parts))) if len(parts) > 1 else parts[0].offset
    ends = [tuple(map(sum, zip(part.offset, part.shape, strict=True))) for part in parts]
    high = tuple(map(max, *ends)) if len(ends) > 1 else ends[0]
    return low, tuple(end - start for start, end in zip(low, high, strict=True))


def _fills_bounds(parts: Sequence[Part]) -> bool:
    """Whether the parts, which never overlap, leave no hole in the box around them."""
    return prod(bounds(parts)[1]) == sum(prod(part.shape) for part in parts)
